"""The gradient of `rssm_observe`'s step, in five launches and in the reverse order of time.

seen → deter → gates → hidden → embedded, each named after what it computes the gradient by. A norm's gradient by its
input x = unit / rate is rate · (g - unit · mean(g · unit)), with g the gradient by unit. Its product with a matrix W
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
from genreward_fast.kernels.rssm_tiles import COLUMNS, NORM_EPS, ROWS, chunk, exact, groups, launch_options
from genreward_fast.kernels.triton_support import HAS_TRITON, padded

if HAS_TRITON:
    from genreward_fast.kernels.rssm_observe_backward_kernels import _deter, _embedded, _gates, _hidden, _seen, _units


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
        PIECE=piece, CHUNK=k, GROUPS=groups(k, 4, 256), ROWS=ROWS, COLUMNS=COLUMNS, EXACT=exact(given),
        num_warps=groups(k, 4, 256), **launch_options(given.device),
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
