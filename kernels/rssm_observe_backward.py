"""The gradient of `rssm_observe`'s step, in five launches and in the reverse order of time.

seen → deter → gates → hidden → embedded, each named after what it computes the gradient by. A norm's gradient by its
input x = unit / rate is rate · (g - unit · mean(g · unit)), with g the gradient by unit. A product of it with a matrix W
is therefore rate · (g · W - mean(g · unit) · (unit · W)), whose last factor depends on no gradient: it is computed for
all steps before the loop, so that the loop multiplies g and has the norms' row sums only added at the end of a product.

The gradients by weights are not here: what they are made of is kept, and one product over all steps gives each of them.

The plain form is the gradient by autograd of `rssm_step.observe_step_reference`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genreward_fast.kernels.rssm_step import StepValues, StepWeights
from genreward_fast.kernels.rssm_tiles import COLUMNS, NORM_EPS, ROWS, chunk, exact, groups, launch_options, padded
from genreward_fast.kernels.triton_support import HAS_TRITON


@dataclass(frozen=True)
class Norms:
    """What the loop needs of a norm over C columns, of all steps: (B, T, ...)."""

    unit: Tensor  # (G, C), the normed rows
    rate: Tensor  # (G,) float32
    scale: Tensor  # (G, C) float32, of the model
    by_unit: Tensor  # (G, C), to be written
    along: Tensor  # (G, C / COLUMNS) float32, to be written: parts of the sum of by_unit · unit

    @classmethod
    def of(cls, x: Tensor, scale: Tensor) -> Norms:
        """Of the norm's input x (B, T, G · C); scale (G, C)."""
        batch, steps = x.shape[:2]
        count, size = scale.shape
        unit = torch.empty_like(x)
        rate = torch.empty(batch, steps, count, dtype=torch.float32, device=x.device)
        _units[(batch * steps, count)](x, unit, rate, NORM_EPS, C=size, SIZE=padded(size), num_warps=4)
        along = torch.empty(batch, steps, count, size // COLUMNS, dtype=torch.float32, device=x.device)
        shape = (batch, steps, count, size)
        return cls(unit.view(shape), rate, scale, torch.empty_like(unit).view(shape), along)

    def at(self, t: int, group: int = 0) -> tuple[Tensor, ...]:
        """by_unit (N, C), rate (N,), along (N, tiles) of one step."""
        return self.by_unit[:, t, group], self.rate[:, t, group], self.along[:, t, group]


@dataclass(frozen=True)
class StepGradients:
    """Gradients of B sequences of T steps; (B, T, ...) each."""

    logits: Tensor  # (F,)
    seen: Tensor  # (H,) by the posterior's layer
    gates: Tensor  # (3 D,)
    active: Tensor  # (D,) by the hidden layer
    state: Tensor  # (D,) by the deter before the step, but for what passes through its embedding
    shared: Tensor  # (2 H,) by the embedded deter and stoch
    posterior: Norms
    hidden: Norms
    embedded: Norms  # of deter, and of stoch
    posterior_product: Tensor  # (D,) the unit rows of `posterior` times `from_deter`
    own_product: Tensor  # (D,) those of `hidden` times its weights' rows for a block's own deter
    shared_product: Tensor  # (2 H,) and for the embedded deter and stoch
    deter_product: Tensor  # (D,) those of `embedded` times `deter_in`
    stoch_product: Tensor  # (F,) and times `stoch_in`

    @classmethod
    def prepare(cls, weights: StepWeights, values: StepValues) -> StepGradients:
        """Memory, and the products that depend on no gradient."""

        def rows(x: Tensor) -> Tensor:
            return x.flatten(0, 1)

        batch, steps, length = values.deter.shape
        size, blocks = weights.deter_in.shape[0], weights.blocks
        piece = length // blocks
        posterior = Norms.of(values.evidence, weights.posterior_scale.unsqueeze(0))
        hidden = Norms.of(values.hidden, weights.hidden_scale.unsqueeze(0))
        embedded = Norms.of(values.embedded, torch.stack([weights.deter_scale, weights.stoch_scale]))
        unit = rows(hidden.unit)[:, 0]
        own = torch.empty_like(values.deter)
        torch.bmm(
            unit.view(-1, blocks, piece).transpose(0, 1),
            weights.hidden[:, :piece].transpose(1, 2),
            out=rows(own).view(-1, blocks, piece).transpose(0, 1),
        )
        shared = weights.hidden[:, piece : piece + 2 * size].transpose(1, 2).reshape(length, 2 * size)
        units = rows(embedded.unit)
        return cls(
            logits=torch.empty_like(values.logits),
            seen=torch.empty_like(values.evidence),
            gates=torch.empty_like(values.gates),
            active=torch.empty_like(values.hidden),
            state=torch.empty_like(values.deter),
            shared=torch.empty_like(values.embedded),
            posterior=posterior,
            hidden=hidden,
            embedded=embedded,
            posterior_product=(rows(posterior.unit)[:, 0] @ weights.from_deter).view(batch, steps, -1),
            own_product=own,
            shared_product=(unit @ shared).view(batch, steps, -1),
            deter_product=(units[:, 0] @ weights.deter_in).view(batch, steps, -1),
            stoch_product=(units[:, 1] @ weights.stoch_in).view(batch, steps, -1),
        )


def with_strides(*tensors: Tensor) -> list[Tensor | int]:
    """Each tensor and the distance of its rows, as the kernels take them."""
    return [x for y in tensors for x in (y, y.stride(0))]


def seen(weights: StepWeights, grads: StepGradients, t: int) -> None:
    """`seen`, and the gradient by the posterior's unit rows, from `logits`."""
    given, out, norm = grads.logits[:, t], grads.seen[:, t], grads.posterior
    flat, size = weights.logit.shape
    k = chunk(flat, COLUMNS, given.dtype)
    by_unit, _, along = norm.at(t)
    _seen[(size // COLUMNS, -(-len(given) // ROWS))](
        *with_strides(given, weights.logit, out, norm.unit[:, t, 0], by_unit, along), norm.scale, len(given),
        K=flat, CHUNK=k, GROUPS=groups(k), ROWS=ROWS, COLUMNS=COLUMNS, EXACT=exact(given), num_warps=groups(k),
        **launch_options(given.device),
    )  # fmt: skip


def deter(
    weights: StepWeights,
    by_deter: Tensor,
    old: Tensor,
    reset: Tensor,
    reset_next: Tensor | None,
    values: StepValues,
    grads: StepGradients,
    t: int,
) -> None:
    """With what comes from step t + 1, the gradient by the deter of t; from it `gates` and part of `state`.

    Args:
        by_deter: (N, D), the gradient that reaches the deter of t from outside.
        old: (N, D), the deter before t.
        reset, reset_next: (N,) bool of t and of t + 1; the latter None for the last step.
    """
    n = min(t + 1, values.deter.shape[1] - 1)
    size, length = weights.from_deter.shape
    piece, tiles = length // weights.blocks, size // COLUMNS
    k = chunk(size, COLUMNS, old.dtype)
    later = reset if reset_next is None else reset_next
    tensors = [
        *grads.posterior.at(t), grads.posterior_product[:, t], weights.from_deter, *grads.embedded.at(n),
        grads.deter_product[:, n], weights.deter_in, by_deter, grads.state[:, n], values.gates[:, t], old,
        grads.gates[:, t], grads.state[:, t], reset, later,
    ]  # fmt: skip
    _deter[(piece // COLUMNS, -(-len(old) // ROWS), weights.blocks)](
        *with_strides(*tensors), weights.gates_bias, len(old),
        H=size, PIECE=piece, TILES=tiles, TILES_PADDED=padded(tiles), LAST=reset_next is None, CHUNK=k,
        GROUPS=groups(k, 4, 256), ROWS=ROWS, COLUMNS=COLUMNS, EXACT=exact(old), num_warps=groups(k, 4, 256),
        **launch_options(old.device),
    )  # fmt: skip


def gates(weights: StepWeights, grads: StepGradients, t: int) -> None:
    """`active`, and the gradient by the hidden layer's unit rows, from `gates`."""
    given, out, norm = grads.gates[:, t], grads.active[:, t], grads.hidden
    piece = out.shape[1] // weights.blocks
    k = chunk(3 * piece, COLUMNS, given.dtype)
    by_unit, _, along = norm.at(t)
    _gates[(piece // COLUMNS, -(-len(given) // ROWS), weights.blocks)](
        *with_strides(given, out, norm.unit[:, t, 0], by_unit, along), norm.scale, weights.gates, len(given),
        PIECE=piece, CHUNK=k, GROUPS=groups(k, 4, 256), ROWS=ROWS, COLUMNS=COLUMNS, EXACT=exact(given), num_warps=groups(k, 4, 256),
        **launch_options(given.device),
    )  # fmt: skip


def hidden(weights: StepWeights, reset: Tensor, grads: StepGradients, t: int) -> None:
    """`shared`, the gradient by its unit rows, and the rest of `state`, which is zero in rows that are reset."""
    norm = grads.embedded
    length, size = grads.state.shape[2], weights.deter_in.shape[0]
    piece, tiles = length // weights.blocks, length // COLUMNS
    k = chunk(length, COLUMNS, grads.state.dtype)
    own = chunk(piece, COLUMNS, grads.state.dtype)
    # A group's part of a chunk must not reach from one block into the next.
    count = max(groups(k, 8), k // own)
    tensors = [
        *grads.hidden.at(t), grads.own_product[:, t], grads.shared_product[:, t], grads.state[:, t],
        grads.shared[:, t], norm.unit[:, t].flatten(1), norm.by_unit[:, t].flatten(1), norm.along[:, t].flatten(1),
        weights.hidden, reset,
    ]  # fmt: skip
    _hidden[(tiles + 2 * size // COLUMNS, -(-len(reset) // ROWS))](
        *with_strides(*tensors), norm.scale, len(reset),
        D=length, PIECE=piece, TILES=tiles, TILES_PADDED=padded(tiles), CHUNK=k, GROUPS=count, OWN=own,
        OWN_GROUPS=groups(own), ROWS=ROWS, COLUMNS=COLUMNS, EXACT=exact(grads.state), num_warps=groups(k, 8),
        **launch_options(reset.device),
    )  # fmt: skip


def embedded(
    weights: StepWeights,
    unimix: float,
    by_stoch: Tensor,
    by_logits: Tensor,
    reset: Tensor,
    values: StepValues,
    grads: StepGradients,
    t: int,
) -> None:
    """`logits` of t - 1, from what reaches its draw through step t and from outside.

    Args:
        by_stoch, by_logits: (N, F), the gradients that reach the draw and the logits of t - 1 from outside.
        reset: (N,) bool of t.
    """
    latents, (size, flat) = values.index.shape[2], weights.stoch_in.shape
    classes = flat // latents
    width = padded(classes)
    per_program = max(1, COLUMNS // width)
    tiles = size // COLUMNS
    k = chunk(size, per_program * width, values.logits.dtype)
    tensors = [
        *grads.embedded.at(t, 1), grads.stoch_product[:, t], weights.stoch_in, by_stoch, by_logits,
        values.logits[:, t - 1], grads.logits[:, t - 1], reset,
    ]  # fmt: skip
    _embedded[(-(-latents // per_program), -(-len(reset) // ROWS))](
        *with_strides(*tensors), len(reset), unimix,
        H=size, TILES=tiles, TILES_PADDED=padded(tiles), LATENTS=latents, CLASSES=classes, PADDED=width,
        PER=per_program, CHUNK=k, GROUPS=groups(k), ROWS=ROWS, EXACT=exact(values.logits), num_warps=groups(k),
        **launch_options(reset.device),
    )  # fmt: skip


if HAS_TRITON:
    import triton
    import triton.language as tl

    from genreward_fast.kernels.rssm_tiles import load_rows, places, product, wait

    @triton.jit
    def _units(x, unit, rate, eps, C: tl.constexpr, SIZE: tl.constexpr):
        """Program (row, group): the norm without scale, and its factor."""
        at = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
        column = tl.arange(0, SIZE)
        value = tl.load(x + at * C + column, mask=column < C, other=0.0).to(tl.float32)
        factor = 1.0 / tl.sqrt(tl.sum(value * value, 0) / C + eps)
        tl.store(unit + at * C + column, (value * factor).to(unit.dtype.element_ty), mask=column < C)
        tl.store(rate + at, factor)

    @triton.jit
    def load_tile(x, stride, row, column, inside):
        """(ROWS, columns) float32."""
        place = x + row.to(tl.int64)[:, None] * stride + column[None, :]
        return tl.load(place, mask=inside[:, None], other=0.0).to(tl.float32)

    @triton.jit
    def store_tile(x, stride, row, column, inside, value):
        place = x + row.to(tl.int64)[:, None] * stride + column[None, :]
        tl.store(place, value.to(x.dtype.element_ty), mask=inside[:, None])

    @triton.jit
    def sum_parts(along, stride, row, inside, TILES: tl.constexpr, TILES_PADDED: tl.constexpr):
        """(ROWS,) sums of what all programs have summed."""
        part = tl.arange(0, TILES_PADDED)[None, :]
        place = along + row.to(tl.int64)[:, None] * stride + part
        return tl.sum(tl.load(place, mask=inside[:, None] & (part < TILES), other=0.0), 1)

    @triton.jit
    def silu_slope(unit, factor):
        """The derivative of silu(unit · factor) by unit."""
        y = unit * factor
        gate = tl.sigmoid(y)
        return gate * (1.0 + y * (1.0 - gate)) * factor

    @triton.jit
    def _seen(
        x, x_stride, w, w_stride, out, out_stride, unit, unit_stride, by_unit, by_unit_stride, along, along_stride,
        scale, rows,
        K: tl.constexpr, CHUNK: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
        EXACT: tl.constexpr, PDL: tl.constexpr,
    ):  # fmt: skip
        """Program (tile, rows): some columns; w (K, H)."""
        column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        inside = row < rows
        from_row = w + column[None, None, :]
        weight = tl.load(from_row + places(0, CHUNK, GROUPS).to(tl.int64)[:, :, None] * w_stride)
        value = load_tile(unit, unit_stride, row, column, inside)
        slope = silu_slope(value, tl.load(scale + column)[None, :])
        wait(PDL)
        acc = tl.zeros([GROUPS, ROWS, COLUMNS], tl.float32)
        for start in tl.static_range(0, K, CHUNK):
            at = places(start, CHUNK, GROUPS)
            if start > 0:
                weight = tl.load(from_row + at.to(tl.int64)[:, :, None] * w_stride)
            acc = product(load_rows(x, x_stride, row, inside, at), weight, acc, EXACT)
        result = tl.sum(acc, 0)
        store_tile(out, out_stride, row, column, inside, result)
        result *= slope
        store_tile(by_unit, by_unit_stride, row, column, inside, result)
        place = along + row.to(tl.int64) * along_stride + tl.program_id(0)
        tl.store(place, tl.sum(result * value, 1), mask=inside)

    @triton.jit(do_not_specialize_on_alignment=["reset", "reset_next", "rate", "next_rate"])
    def _deter(
        seen, seen_stride, rate, rate_stride, along, along_stride, unit_product, unit_product_stride, w, w_stride,
        next_seen, next_seen_stride, next_rate, next_rate_stride, next_along, next_along_stride, next_product,
        next_product_stride, next_w, next_w_stride, direct, direct_stride, later, later_stride, gates, gates_stride,
        old, old_stride, by_gates, by_gates_stride, by_old, by_old_stride, reset, reset_stride, reset_next,
        reset_next_stride, bias, rows,
        H: tl.constexpr, PIECE: tl.constexpr, TILES: tl.constexpr, TILES_PADDED: tl.constexpr, LAST: tl.constexpr,
        CHUNK: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr,
        PDL: tl.constexpr,
    ):  # fmt: skip
        """Program (tile, rows, block): some columns of a block; both w (H, D)."""
        local = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        column = tl.program_id(2) * PIECE + local
        row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        inside = row < rows
        at = places(0, CHUNK, GROUPS)
        from_row = w + column[None, None, :]
        weight = tl.load(from_row + at.to(tl.int64)[:, :, None] * w_stride)
        of_gate = tl.program_id(2) * 3 * PIECE + local
        # What the forward pass has kept may be read before the kernel before this one ends.
        first = load_tile(gates, gates_stride, row, of_gate, inside) + tl.load(bias + of_gate).to(tl.float32)[None, :]
        of_gate += PIECE
        raw = load_tile(gates, gates_stride, row, of_gate, inside) + tl.load(bias + of_gate).to(tl.float32)[None, :]
        of_gate += PIECE
        update = load_tile(gates, gates_stride, row, of_gate, inside) + tl.load(bias + of_gate).to(tl.float32)[None, :]
        first = tl.sigmoid(first)
        u = tl.sigmoid(update - 1.0)
        new = 2.0 * tl.sigmoid(2.0 * first * raw) - 1.0
        fresh = tl.load(reset + row * reset_stride, mask=inside, other=1)
        prior = tl.where(fresh[:, None], 0.0, load_tile(old, old_stride, row, column, inside))
        total = load_tile(direct, direct_stride, row, column, inside)
        unit = load_tile(unit_product, unit_product_stride, row, column, inside)
        factor = tl.load(rate + row * rate_stride, mask=inside, other=0.0)
        if not LAST:
            next_row = next_w + column[None, None, :]
            next_weight = tl.load(next_row + at.to(tl.int64)[:, :, None] * next_w_stride)
            cut = tl.load(reset_next + row * reset_next_stride, mask=inside, other=1)
            next_unit = load_tile(next_product, next_product_stride, row, column, inside)
            next_factor = tl.load(next_rate + row * next_rate_stride, mask=inside, other=0.0)
        wait(PDL)
        value = load_rows(seen, seen_stride, row, inside, at)
        mean = sum_parts(along, along_stride, row, inside, TILES, TILES_PADDED) / H
        if not LAST:
            total += load_tile(later, later_stride, row, column, inside)
            next_mean = sum_parts(next_along, next_along_stride, row, inside, TILES, TILES_PADDED) / H
            acc = tl.zeros([GROUPS, ROWS, COLUMNS], tl.float32)
            for start in tl.static_range(0, H, CHUNK):
                if start > 0:
                    next_weight = tl.load(next_row + (start + at).to(tl.int64)[:, :, None] * next_w_stride)
                acc = product(load_rows(next_seen, next_seen_stride, row, inside, start + at), next_weight, acc, EXACT)
            more = next_factor[:, None] * (tl.sum(acc, 0) - next_mean[:, None] * next_unit)
            total += tl.where(cut[:, None], 0.0, more)
        acc = tl.zeros([GROUPS, ROWS, COLUMNS], tl.float32)
        for start in tl.static_range(0, H, CHUNK):
            if start > 0:
                weight = tl.load(from_row + (start + at).to(tl.int64)[:, :, None] * w_stride)
                value = load_rows(seen, seen_stride, row, inside, start + at)
            acc = product(value, weight, acc, EXACT)
        total += factor[:, None] * (tl.sum(acc, 0) - mean[:, None] * unit)
        by_inner = total * u * (1.0 - new * new)
        store_tile(by_gates, by_gates_stride, row, of_gate, inside, total * (new - prior) * u * (1.0 - u))
        store_tile(by_gates, by_gates_stride, row, of_gate - PIECE, inside, by_inner * first)
        by_first = by_inner * raw * first * (1.0 - first)
        store_tile(by_gates, by_gates_stride, row, of_gate - 2 * PIECE, inside, by_first)
        store_tile(by_old, by_old_stride, row, column, inside, total * (1.0 - u))

    @triton.jit
    def _gates(
        grad, grad_stride, out, out_stride, unit, unit_stride, by_unit, by_unit_stride, along, along_stride, scale, w,
        rows,
        PIECE: tl.constexpr, CHUNK: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
        EXACT: tl.constexpr, PDL: tl.constexpr,
    ):  # fmt: skip
        """Program (tile, rows, block): some columns of a block; w (blocks, PIECE, 3 PIECE)."""
        block = tl.program_id(2)
        local = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        column = block * PIECE + local
        row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        inside = row < rows
        at = places(0, CHUNK, GROUPS)
        from_block = w + (block.to(tl.int64) * PIECE + local[None, None, :]) * 3 * PIECE
        weight = tl.load(from_block + at[:, :, None])
        value = load_tile(unit, unit_stride, row, column, inside)
        slope = silu_slope(value, tl.load(scale + column)[None, :])
        wait(PDL)
        acc = tl.zeros([GROUPS, ROWS, COLUMNS], tl.float32)
        for start in tl.static_range(0, 3 * PIECE, CHUNK):
            if start > 0:
                weight = tl.load(from_block + (start + at)[:, :, None])
            given = load_rows(grad, grad_stride, row, inside, block * 3 * PIECE + start + at)
            acc = product(given, weight, acc, EXACT)
        result = tl.sum(acc, 0)
        store_tile(out, out_stride, row, column, inside, result)
        result *= slope
        store_tile(by_unit, by_unit_stride, row, column, inside, result)
        place = along + row.to(tl.int64) * along_stride + block * (PIECE // COLUMNS) + tl.program_id(0)
        tl.store(place, tl.sum(result * value, 1), mask=inside)

    @triton.jit(do_not_specialize_on_alignment=["reset", "rate"])
    def _hidden(
        grad, grad_stride, rate, rate_stride, along, along_stride, own_product, own_product_stride, shared_product,
        shared_product_stride, by_old, by_old_stride, by_shared, by_shared_stride, unit, unit_stride, by_unit,
        by_unit_stride, by_along, by_along_stride, w, w_stride, reset, reset_stride, scale, rows,
        D: tl.constexpr, PIECE: tl.constexpr, TILES: tl.constexpr, TILES_PADDED: tl.constexpr, CHUNK: tl.constexpr,
        GROUPS: tl.constexpr, OWN: tl.constexpr, OWN_GROUPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
        EXACT: tl.constexpr, PDL: tl.constexpr,
    ):  # fmt: skip
        """The first programs compute columns of embedded states, whose inner dimension is all of D; the others add to
        columns of the state before, whose is one block. w (blocks, PIECE + 3 H, PIECE)."""
        tile = tl.program_id(0) - (tl.num_programs(0) - TILES)
        row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        inside = row < rows
        factor = tl.load(rate + row * rate_stride, mask=inside, other=0.0)
        if tile < 0:
            shared_tile = tl.program_id(0)
            column = shared_tile * COLUMNS + tl.arange(0, COLUMNS)
            part: tl.constexpr = CHUNK // GROUPS
            group = tl.arange(0, GROUPS)[:, None] * part
            within = tl.arange(0, part)[None, :]
            from_row = w + (PIECE + column[None, None, :]) * PIECE
            place = group // PIECE * w_stride + group % PIECE + within
            weight = tl.load(from_row + place[:, :, None])
            value = load_tile(unit, unit_stride, row, column, inside)
            slope = silu_slope(value, tl.load(scale + column)[None, :])
            other = load_tile(shared_product, shared_product_stride, row, column, inside)
            wait(PDL)
            mean = sum_parts(along, along_stride, row, inside, TILES, TILES_PADDED) / D
            acc = tl.zeros([GROUPS, ROWS, COLUMNS], tl.float32)
            for start in tl.static_range(0, D, CHUNK):
                if start > 0:
                    place = (start + group) // PIECE * w_stride + (start + group) % PIECE + within
                    weight = tl.load(from_row + place[:, :, None])
                acc = product(load_rows(grad, grad_stride, row, inside, start + group + within), weight, acc, EXACT)
            result = factor[:, None] * (tl.sum(acc, 0) - mean[:, None] * other)
            store_tile(by_shared, by_shared_stride, row, column, inside, result)
            result *= slope
            store_tile(by_unit, by_unit_stride, row, column, inside, result)
            to = by_along + row.to(tl.int64) * by_along_stride + shared_tile
            tl.store(to, tl.sum(result * value, 1), mask=inside)
        else:
            own_column = tile * COLUMNS + tl.arange(0, COLUMNS)
            block = tile // (PIECE // COLUMNS)
            at = places(0, OWN, OWN_GROUPS)
            own_row = w + block.to(tl.int64) * w_stride
            own_row += (tile % (PIECE // COLUMNS) * COLUMNS + tl.arange(0, COLUMNS))[None, None, :] * PIECE
            own_weight = tl.load(own_row + at[:, :, None])
            fresh = tl.load(reset + row * reset_stride, mask=inside, other=1)
            own_other = load_tile(own_product, own_product_stride, row, own_column, inside)
            wait(PDL)
            own_mean = sum_parts(along, along_stride, row, inside, TILES, TILES_PADDED) / D
            given = load_tile(by_old, by_old_stride, row, own_column, inside)
            own_acc = tl.zeros([OWN_GROUPS, ROWS, COLUMNS], tl.float32)
            for start in tl.static_range(0, PIECE, OWN):
                if start > 0:
                    own_weight = tl.load(own_row + (start + at)[:, :, None])
                own_value = load_rows(grad, grad_stride, row, inside, block * PIECE + start + at)
                own_acc = product(own_value, own_weight, own_acc, EXACT)
            own = factor[:, None] * (tl.sum(own_acc, 0) - own_mean[:, None] * own_other)
            store_tile(by_old, by_old_stride, row, own_column, inside, tl.where(fresh[:, None], 0.0, given + own))

    @triton.jit(do_not_specialize_on_alignment=["reset", "rate"])
    def _embedded(
        grad, grad_stride, rate, rate_stride, along, along_stride, unit_product, unit_product_stride, w, w_stride,
        by_stoch, by_stoch_stride, by_logits, by_logits_stride, logits, logits_stride, out, out_stride, reset,
        reset_stride, rows, unimix,
        H: tl.constexpr, TILES: tl.constexpr, TILES_PADDED: tl.constexpr, LATENTS: tl.constexpr,
        CLASSES: tl.constexpr, PADDED: tl.constexpr, PER: tl.constexpr, CHUNK: tl.constexpr, GROUPS: tl.constexpr,
        ROWS: tl.constexpr, EXACT: tl.constexpr, PDL: tl.constexpr,
    ):  # fmt: skip
        """Program (tile, rows): PER latents, straight through their draws; w (H, F)."""
        slot = tl.arange(0, PER * PADDED)
        latent, klass = tl.program_id(0) * PER + slot // PADDED, slot % PADDED
        column, real = latent * CLASSES + klass, (klass < CLASSES) & (latent < LATENTS)
        row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        inside = row < rows
        wide, keep = row.to(tl.int64)[:, None], (row < rows)[:, None] & real[None, :]
        at = places(0, CHUNK, GROUPS)
        from_row = w + column[None, None, :]
        weight = tl.load(from_row + at.to(tl.int64)[:, :, None] * w_stride, mask=real[None, None, :], other=0.0)
        given = tl.load(by_stoch + wide * by_stoch_stride + column[None, :], mask=keep, other=0.0).to(tl.float32)
        more = tl.load(by_logits + wide * by_logits_stride + column[None, :], mask=keep, other=0.0).to(tl.float32)
        unit = tl.load(unit_product + wide * unit_product_stride + column[None, :], mask=keep, other=0.0)
        raw = tl.load(logits + wide * logits_stride + column[None, :], mask=keep, other=-float("inf"))
        raw = tl.reshape(raw.to(tl.float32), [ROWS, PER, PADDED])
        top = tl.max(raw, 2)
        power = tl.exp(raw - tl.where(top == -float("inf"), 0.0, top)[:, :, None])
        sums = tl.sum(power, 2)
        probs = power / tl.where(sums == 0.0, 1.0, sums)[:, :, None]
        fresh = tl.load(reset + row * reset_stride, mask=inside, other=1)
        factor = tl.load(rate + row * rate_stride, mask=inside, other=0.0)
        wait(PDL)
        mean = sum_parts(along, along_stride, row, inside, TILES, TILES_PADDED) / H
        acc = tl.zeros([GROUPS, ROWS, PER * PADDED], tl.float32)
        for start in tl.static_range(0, H, CHUNK):
            if start > 0:
                place = from_row + (start + at).to(tl.int64)[:, :, None] * w_stride
                weight = tl.load(place, mask=real[None, None, :], other=0.0)
            acc = product(load_rows(grad, grad_stride, row, inside, start + at), weight, acc, EXACT)
        draw = factor[:, None] * (tl.sum(acc, 0) - mean[:, None] * unit.to(tl.float32))
        draw = tl.reshape(given + tl.where(fresh[:, None], 0.0, draw), [ROWS, PER, PADDED])
        through = (1.0 - unimix) * probs * (draw - tl.sum(probs * draw, 2)[:, :, None])
        result = tl.reshape(through, [ROWS, PER * PADDED]) + more
        tl.store(out + wide * out_stride + column[None, :], result.to(out.dtype.element_ty), mask=keep)
