"""A convolution's output on the way to the next one: sums, group norm over pieces of clips, SiLU, and padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from genreward_fast.kernels.moments import FLOAT8, Moments, to_float8
from genreward_fast.kernels.triton_support import HAS_TRITON, padded, runs_triton

TILE = 4096
WRITTEN = 8192
"""Numbers of a program's block: of one that adds up, and of one that writes the activation."""
MAX_SPLITS = 528
"""Most partial sums of a chunk; they are added up in a fixed order."""
FINISHED = 2048
FLOAT8_FACTOR = 8.0
"""What an activation in float8 is multiplied with: it then reaches 56, and has two digits from 0.002 on."""


def group_norm_silu_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    chunks: Sequence[int],
    *,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    before: int = 0,
    around: int = 0,
    float8: bool = False,
) -> tuple[Tensor, Tensor]:
    """What `group_norm_silu` computes, in plain PyTorch with float32 inside; it always gives the sum."""
    total = x
    if shift is not None or residual is not None:
        for term in (shift, residual):
            total = total if term is None else total.float() + term.float()
        total = total.to(x.dtype)
    parts = []
    for chunk in total.float().split(list(chunks), 1):
        # PyTorch's norm of channels-last memory on a CPU loses digits where means are far from 0.
        middle = chunk[:, :1].unflatten(-1, (groups, -1)).mean((1, 2, 3, 5), keepdim=True)
        near = (chunk.unflatten(-1, (groups, -1)) - middle).flatten(-2)
        normed = torch.group_norm(near.permute(0, 4, 1, 2, 3), groups, weight.float(), bias.float(), eps)
        active = functional.silu(normed, inplace=True).permute(0, 2, 3, 4, 1)
        parts.append(active if float8 else active.to(x.dtype))
    out = torch.cat([parts[0][:, :1]] * before + parts, 1)
    out = functional.pad(out, (0, 0, *(around,) * 4)) if around else out
    return to_float8(out * FLOAT8_FACTOR) if float8 else out, total


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    chunks: Sequence[int],
    *,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    before: int = 0,
    around: int = 0,
    keep: bool = True,
    moments: Moments | None = None,
    float8: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """silu(norm(x + shift + residual)), padded; a norm is over a group of channels in all pixels of a chunk of frames.

    The sum is rounded to x's dtype; all else is in float32 inside. Results depend neither on the batch size nor on the
    GPU's model, and repeat exactly. No gradients.

    Args:
        x: (B, T, H, W, C) of any floating dtype; copied unless contiguous.
        weight, bias: (C,) of any floating dtype.
        groups: of neighbouring channels; divides C.
        eps: added to the variance.
        chunks: lengths of the pieces of T frames; from the second on they are equal.
        shift: (C,) of any floating dtype.
        residual: like x.
        before: copies of the first frame in front of it.
        around: rows and columns of zeros on every side of a frame.
        keep: give the sum, too.
        moments: of x's chunks, a clip's after one another, if whoever made x knows them; then there is nothing to add.
        float8: give `FLOAT8_FACTOR` times the activation in float8 (e4m3).

    Returns:
        The activation, (B, before + T, H + 2 around, W + 2 around, C), and the sum, (B, T, H, W, C), which is x itself
        if there is nothing to add, or None without `keep`; both in x's dtype.

    Raises:
        ValueError: these chunks do not make up T frames, or the groups C channels; moments with something to add.
    """
    chunks = list(chunks)
    if sum(chunks) != x.shape[1] or min(chunks) < 1 or len(set(chunks[1:])) > 1:
        raise ValueError(f"chunks of {chunks} frames: must be equal but for the first, and sum up to {x.shape[1]}")
    if x.shape[-1] % groups:
        raise ValueError(f"{x.shape[-1]} channels: not a multiple of {groups} groups")
    if moments is not None and not (shift is None and residual is None):
        raise ValueError("moments are of x alone: there must be no shift and no residual")
    given = [tensor for tensor in (x, weight, bias, shift, residual) if tensor is not None]
    if not runs_triton(*given) or x.numel() == 0:
        out, total = group_norm_silu_reference(
            x,
            weight,
            bias,
            groups,
            eps,
            chunks,
            shift=shift,
            residual=residual,
            before=before,
            around=around,
            float8=float8,
        )
        return out, total if keep else None
    x = x.contiguous()
    residual = None if residual is None else residual.contiguous()
    # Writing a residual sum and reading it again is no more than reading both twice.
    written = residual is not None or (keep and shift is not None)
    total = torch.empty(x.shape, dtype=x.dtype, device=x.device) if written else x
    if moments is None:
        moments = _moments(x, chunks, shift, residual, total)
    coefficients = _coefficients(x, weight, bias, groups, eps, moments)
    out = _normed(total, None if written else shift, coefficients, chunks, before, around, float8)
    return out, total if keep else None


def _tile(numbers: int, size: int) -> dict[str, int]:
    """Rows and columns of a program's block."""
    tile = padded(size)
    return {"ROWS": max(1, min(512, numbers // tile)), "SIZE": tile}


def _pieces(chunks: list[int]) -> tuple[int, int, int]:
    """How many chunks, the length of the first, and that of the others."""
    return len(chunks), chunks[0], chunks[-1]


def _moments(x: Tensor, chunks: list[int], shift: Tensor | None, residual: Tensor | None, total: Tensor) -> Moments:
    """Of the sum, which is written to `total` if that is not x."""
    clips, frames, height, width, size = x.shape
    pixels, options = height * width, _tile(TILE, size)
    count, first, rest = _pieces(chunks)
    blocks = -(-max(chunks) * pixels // options["ROWS"])
    per_split = -(-blocks // min(blocks, MAX_SPLITS))
    moments = Moments.empty(clips * count, -(-blocks // per_split), size, x.device)
    _partial_sums[moments.counts.shape](
        x,
        x if shift is None else shift,
        x if residual is None else residual,
        total,
        moments.values,
        moments.counts,
        frames,
        pixels,
        size,
        count,
        first,
        rest,
        per_split,
        SHIFT=shift is not None,
        RESIDUAL=residual is not None,
        WRITE=total is not x,
        **options,
        num_warps=4,
    )
    return moments


def _coefficients(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, moments: Moments) -> Tensor:
    """(B · chunks, 2, C) float32: what a norm multiplies x with, and adds."""
    size = x.shape[-1]
    rows, splits = moments.counts.shape
    coefficients = torch.empty((rows, 2, size), dtype=torch.float32, device=x.device)
    members = padded(size // groups)
    _finish[(rows, groups)](
        moments.values,
        moments.counts,
        weight,
        bias,
        coefficients,
        splits,
        size,
        size // groups,
        eps,
        SPLITS=max(1, min(padded(splits), FINISHED // members)),
        SIZE=members,
        num_warps=4,
    )
    return coefficients


def _normed(
    total: Tensor,
    shift: Tensor | None,
    coefficients: Tensor,
    chunks: list[int],
    before: int,
    around: int,
    float8: bool,
) -> Tensor:
    """The padded activation."""
    clips, frames, height, width, size = total.shape
    tall, wide = height + 2 * around, width + 2 * around
    dtype = FLOAT8 if float8 else total.dtype
    out = torch.empty((clips, before + frames, tall, wide, size), dtype=dtype, device=total.device)
    options = _tile(WRITTEN, size)
    blocks = -(-tall * wide // options["ROWS"])
    _normalise[(clips * frames * blocks,)](
        total,
        total if shift is None else shift,
        coefficients,
        out,
        blocks,
        frames,
        height,
        width,
        size,
        *_pieces(chunks),
        before,
        around,
        FLOAT8_FACTOR if float8 else 1.0,
        SHIFT=shift is not None,
        **options,
        num_warps=8,
    )
    return out


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _sum(x, residual, at, moved, inside, SHIFT: tl.constexpr, RESIDUAL: tl.constexpr):
        """x + shift + residual, rounded."""
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        if SHIFT:
            value += moved
        if RESIDUAL:
            value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        return value.to(x.dtype.element_ty).to(tl.float32)

    @triton.jit
    def _frames_of(chunk, first, rest):
        """The first frame of a chunk, and how many it has."""
        return tl.where(chunk > 0, first + (chunk - 1) * rest, 0), tl.where(chunk > 0, rest, first)

    @triton.jit
    def _partial_sums(
        x,
        shift,
        residual,
        total,
        values,
        counts,
        frames,
        pixels,
        size,
        count,
        first,
        rest,
        per_split,
        SHIFT: tl.constexpr,
        RESIDUAL: tl.constexpr,
        WRITE: tl.constexpr,
        ROWS: tl.constexpr,
        SIZE: tl.constexpr,
    ):
        """Program (chunk, split): every channel's mean over its pixels, and the squared distances from it.

        They are summed up as distances from the chunk's first pixel, so that nothing cancels where the mean is far
        from 0.
        """
        which, split = tl.program_id(0), tl.program_id(1)
        begin, length = _frames_of(which % count, first, rest)
        base = (which // count * frames + begin).to(tl.int64) * pixels
        column = tl.arange(0, SIZE)
        real = column < size
        moved = tl.zeros([SIZE], tl.float32)
        if SHIFT:
            moved = tl.load(shift + column, mask=real, other=0.0).to(tl.float32)
        pivot = _sum(x, residual, base * size + column, moved, real, SHIFT, RESIDUAL)
        start = split * per_split * ROWS
        left = length * pixels - start
        linear, square = tl.zeros([ROWS, SIZE], tl.float32), tl.zeros([ROWS, SIZE], tl.float32)
        row = tl.arange(0, ROWS)
        offset = row[:, None] * size + column[None, :]
        begin_at = (base + start) * size
        x, residual, total = x + begin_at, residual + begin_at, total + begin_at
        for block in tl.range(0, per_split, num_stages=3):
            inside = (block * ROWS + row < left)[:, None] & real[None, :]
            at = block * (ROWS * size) + offset
            value = _sum(x, residual, at, moved[None, :], inside, SHIFT, RESIDUAL)
            if WRITE:
                tl.store(total + at, value.to(total.dtype.element_ty), mask=inside)
            distance = tl.where(inside, value - pivot[None, :], 0.0)
            linear += distance
            square += distance * distance
        number = tl.minimum(tl.maximum(left, 0), per_split * ROWS).to(tl.float32)
        sums = tl.sum(linear, 0)
        middle = sums / tl.maximum(number, 1.0)
        piece = which * tl.num_programs(1) + split
        tl.store(values + piece * 2 * size + column, pivot + middle, mask=real)
        tl.store(values + (piece * 2 + 1) * size + column, tl.sum(square, 0) - sums * middle, mask=real)
        tl.store(counts + piece, number)

    @triton.jit
    def _finish(
        values,
        counts,
        weight,
        bias,
        coefficients,
        splits,
        size,
        members,
        eps,
        SPLITS: tl.constexpr,
        SIZE: tl.constexpr,
    ):
        """Program (chunk, group): mean and deviation over the group's channels, as coefficients of each of them."""
        which, column = tl.program_id(0), tl.arange(0, SIZE)
        real = column < members
        column += tl.program_id(1) * members
        sums = tl.zeros([SPLITS, SIZE], tl.float32)
        numbers = tl.zeros([SPLITS], tl.float32)
        for start in range(0, splits, SPLITS):
            split = start + tl.arange(0, SPLITS)
            number = tl.load(counts + which * splits + split, mask=split < splits, other=0.0)
            known = (number > 0)[:, None] & real[None, :]
            at = (which * splits + split)[:, None] * 2 * size + column[None, :]
            sums += tl.load(values + at, mask=known, other=0.0) * number[:, None]
            numbers += number
        rows = tl.sum(numbers)
        middle = tl.sum(tl.sum(sums, 0) / rows) / members
        spread = tl.zeros([SPLITS, SIZE], tl.float32)
        for start in range(0, splits, SPLITS):
            split = start + tl.arange(0, SPLITS)
            number = tl.load(counts + which * splits + split, mask=split < splits, other=0.0)
            known = (number > 0)[:, None] & real[None, :]
            at = (which * splits + split)[:, None] * 2 * size + column[None, :]
            away = tl.where(known, tl.load(values + at, mask=known, other=0.0) - middle, 0.0)
            spread += tl.load(values + at + size, mask=known, other=0.0) + number[:, None] * away * away
        variance = tl.sum(tl.sum(spread, 0) / rows) / members
        # A maximum would lose NaN.
        rate = 1.0 / tl.sqrt(tl.where(variance < 0, 0.0, variance) + eps)
        scale = rate * tl.load(weight + column, mask=real, other=0.0).to(tl.float32)
        offset = tl.load(bias + column, mask=real, other=0.0).to(tl.float32) - middle * scale
        tl.store(coefficients + which * 2 * size + column, scale, mask=real)
        tl.store(coefficients + (which * 2 + 1) * size + column, offset, mask=real)

    @triton.jit
    def _normalise(
        total,
        shift,
        coefficients,
        out,
        blocks,
        frames,
        height,
        width,
        size,
        count,
        first,
        rest,
        before,
        around,
        factor,
        SHIFT: tl.constexpr,
        ROWS: tl.constexpr,
        SIZE: tl.constexpr,
    ):
        """Programs go by frame and block: ROWS pixels of a padded frame; of a clip's first one also of its copies."""
        frame, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
        clip, time = frame // frames, frame % frames
        which = clip * count + tl.where(time < first, 0, 1 + (time - first) // rest)
        column = tl.arange(0, SIZE)
        real = column < size
        scale = tl.load(coefficients + which * 2 * size + column, mask=real, other=0.0)
        offset = tl.load(coefficients + (which * 2 + 1) * size + column, mask=real, other=0.0)
        tall, wide = height + 2 * around, width + 2 * around
        pixel = block * ROWS + tl.arange(0, ROWS)
        line, place = pixel // wide - around, pixel % wide - around
        inner = (line >= 0) & (line < height) & (place >= 0) & (place < width)
        inside = inner[:, None] & real[None, :]
        row = frame.to(tl.int64) * height * width + line * width + place
        moved = tl.load(shift + column, mask=real, other=0.0).to(tl.float32)[None, :] if SHIFT else 0.0
        value = _sum(total, total, row[:, None] * size + column[None, :], moved, inside, SHIFT, False)
        normed = value * scale[None, :] + offset[None, :]
        result = tl.where(inside, normed * tl.sigmoid(normed) * factor, 0.0)
        if out.dtype.element_ty == tl.float8e4nv:  # interpreted, too, it must not overflow to NaN
            result = tl.clamp(result, -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
        result = result.to(out.dtype.element_ty)
        stored = (pixel < tall * wide)[:, None] & real[None, :]
        target = (clip * (before + frames) + before + time).to(tl.int64) * tall * wide
        tl.store(out + (target + pixel)[:, None] * size + column[None, :], result, mask=stored)
        if time == 0:
            for copy in range(before):
                target = (clip * (before + frames) + copy).to(tl.int64) * tall * wide
                tl.store(out + (target + pixel)[:, None] * size + column[None, :], result, mask=stored)
