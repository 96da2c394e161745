"""A convolution's output on the way to the next one: sums, group norm over pieces of clips, SiLU, and padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from genreward_fast.kernels.triton_support import HAS_TRITON, padded, runs_triton

TILE = 4096
MAX_SPLITS = 256
"""Most partial sums of a chunk; they are added up in a fixed order."""
FINISHED = 2048


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
        parts.append(functional.silu(normed, inplace=True).permute(0, 2, 3, 4, 1).to(x.dtype))
    out = torch.cat([parts[0][:, :1]] * before + parts, 1)
    return functional.pad(out, (0, 0, *(around,) * 4)) if around else out, total


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

    Returns:
        The activation, (B, before + T, H + 2 around, W + 2 around, C), and the sum, (B, T, H, W, C), which is x itself
        if there is nothing to add, or None without `keep`; both in x's dtype.

    Raises:
        ValueError: these chunks do not make up T frames, or the groups C channels.
    """
    chunks = list(chunks)
    if sum(chunks) != x.shape[1] or min(chunks) < 1 or len(set(chunks[1:])) > 1:
        raise ValueError(f"chunks of {chunks} frames: must be equal but for the first, and sum up to {x.shape[1]}")
    if x.shape[-1] % groups:
        raise ValueError(f"{x.shape[-1]} channels: not a multiple of {groups} groups")
    given = [tensor for tensor in (x, weight, bias, shift, residual) if tensor is not None]
    if not runs_triton(*given) or x.numel() == 0:
        out, total = group_norm_silu_reference(
            x, weight, bias, groups, eps, chunks, shift=shift, residual=residual, before=before, around=around
        )
        return out, total if keep else None
    x = x.contiguous()
    residual = None if residual is None else residual.contiguous()
    # Writing a residual sum and reading it again is no more than reading both twice.
    written = residual is not None or (keep and shift is not None)
    total = torch.empty(x.shape, dtype=x.dtype, device=x.device) if written else x
    coefficients = _coefficients(x, weight, bias, groups, eps, chunks, shift, residual, total)
    out = _normed(total, None if written else shift, coefficients, chunks, before, around)
    return out, total if keep else None


def _tile(size: int) -> dict[str, int]:
    """Rows and columns of a program's block."""
    tile = padded(size)
    return {"ROWS": max(1, min(512, TILE // tile)), "SIZE": tile, "num_warps": 8}


def _pieces(chunks: list[int]) -> tuple[int, int, int]:
    """How many chunks, the length of the first, and that of the others."""
    return len(chunks), chunks[0], chunks[-1]


def _coefficients(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    chunks: list[int],
    shift: Tensor | None,
    residual: Tensor | None,
    total: Tensor,
) -> Tensor:
    """(B, chunks, 2, C) float32: what a norm multiplies the sum with, and adds. Writes `total` if that is not x."""
    clips, frames, height, width, size = x.shape
    pixels, options = height * width, _tile(size)
    count, first, rest = _pieces(chunks)
    blocks = -(-max(chunks) * pixels // options["ROWS"])
    per_split = -(-blocks // min(blocks, MAX_SPLITS))
    splits = -(-blocks // per_split)
    partial = torch.empty((clips, count, splits, 2, size), dtype=torch.float32, device=x.device)
    pivots = torch.empty((clips, count, size), dtype=torch.float32, device=x.device)
    coefficients = torch.empty((clips, count, 2, size), dtype=torch.float32, device=x.device)
    _partial_sums[(clips * count, splits)](
        x,
        x if shift is None else shift,
        x if residual is None else residual,
        total,
        pivots,
        partial,
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
    )
    members = padded(size // groups)
    _finish[(clips * count, groups)](
        partial,
        pivots,
        weight,
        bias,
        coefficients,
        splits,
        pixels,
        size,
        size // groups,
        count,
        first,
        rest,
        eps,
        SPLITS=max(1, min(MAX_SPLITS, FINISHED // members)),
        SIZE=members,
        num_warps=4,
    )
    return coefficients


def _normed(
    total: Tensor, shift: Tensor | None, coefficients: Tensor, chunks: list[int], before: int, around: int
) -> Tensor:
    """The padded activation."""
    clips, frames, height, width, size = total.shape
    tall, wide = height + 2 * around, width + 2 * around
    out = torch.empty((clips, before + frames, tall, wide, size), dtype=total.dtype, device=total.device)
    options = _tile(size)
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
        SHIFT=shift is not None,
        **options,
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
        pivots,
        partial,
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
        """Program (chunk, split): every channel's sum over its pixels, and of the squares, to partial[chunk, split].

        They are of distances from the chunk's first pixel, so that nothing cancels where the mean is far from 0.
        """
        which, split = tl.program_id(0), tl.program_id(1)
        begin, length = _frames_of(which % count, first, rest)
        rows = length * pixels
        base = (which // count * frames + begin).to(tl.int64) * pixels
        column = tl.arange(0, SIZE)
        real = column < size
        moved = tl.zeros([SIZE], tl.float32)
        if SHIFT:
            moved = tl.load(shift + column, mask=real, other=0.0).to(tl.float32)
        pivot = _sum(x, residual, base * size + column, moved, real, SHIFT, RESIDUAL)
        tl.store(pivots + which * size + column, pivot, mask=real & (split == 0))
        linear, square = tl.zeros([ROWS, SIZE], tl.float32), tl.zeros([ROWS, SIZE], tl.float32)
        for block in range(per_split):
            row = (split * per_split + block) * ROWS + tl.arange(0, ROWS)
            inside = (row < rows)[:, None] & real[None, :]
            at = (base + row)[:, None] * size + column[None, :]
            value = _sum(x, residual, at, moved[None, :], inside, SHIFT, RESIDUAL)
            if WRITE:
                tl.store(total + at, value.to(total.dtype.element_ty), mask=inside)
            distance = tl.where(inside, value - pivot[None, :], 0.0)
            linear += distance
            square += distance * distance
        at = (which * tl.num_programs(1) + split) * 2 * size + column
        tl.store(partial + at, tl.sum(linear, 0), mask=real)
        tl.store(partial + at + size, tl.sum(square, 0), mask=real)

    @triton.jit
    def _finish(
        partial,
        pivots,
        weight,
        bias,
        coefficients,
        splits,
        pixels,
        size,
        members,
        count,
        first,
        rest,
        eps,
        SPLITS: tl.constexpr,
        SIZE: tl.constexpr,
    ):
        """Program (chunk, group): mean and deviation over the group's channels, as coefficients of each of them."""
        which, column = tl.program_id(0), tl.arange(0, SIZE)
        real = column < members
        column += tl.program_id(1) * members
        _, length = _frames_of(which % count, first, rest)
        linear, square = tl.zeros([SPLITS, SIZE], tl.float32), tl.zeros([SPLITS, SIZE], tl.float32)
        for start in range(0, splits, SPLITS):
            split = start + tl.arange(0, SPLITS)
            inside = (split < splits)[:, None] & real[None, :]
            at = (which * splits + split)[:, None] * 2 * size + column[None, :]
            linear += tl.load(partial + at, mask=inside, other=0.0)
            square += tl.load(partial + at + size, mask=inside, other=0.0)
        rows = (length * pixels).to(tl.float32)
        distance = tl.sum(linear, 0) / rows
        mean = tl.load(pivots + which * size + column, mask=real, other=0.0) + distance
        middle = tl.sum(mean) / members
        between = tl.where(real, (mean - middle) * (mean - middle), 0.0)
        variance = tl.sum(tl.sum(square, 0) / rows - distance * distance + between) / members
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
        result = tl.where(inside, normed * tl.sigmoid(normed), 0.0).to(out.dtype.element_ty)
        stored = (pixel < tall * wide)[:, None] & real[None, :]
        target = (clip * (before + frames) + before + time).to(tl.int64) * tall * wide
        tl.store(out + (target + pixel)[:, None] * size + column[None, :], result, mask=stored)
        if time == 0:
            for copy in range(before):
                target = (clip * (before + frames) + copy).to(tl.int64) * tall * wide
                tl.store(out + (target + pixel)[:, None] * size + column[None, :], result, mask=stored)
