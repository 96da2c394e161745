"""What a convolution that halves the picture reads: a residual sum, its mean over pairs of frames, and padding."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from genreward_fast.kernels.triton_support import HAS_TRITON, padded, runs_triton

TILE = 4096


def time_pool_reference(x: Tensor, shift: Tensor | None, residual: Tensor | None, pairs: bool) -> Tensor:
    """What `time_pool` computes, in plain PyTorch with float32 inside."""
    total = x.float()
    for term in (shift, residual):
        total = total if term is None else total + term.float()
    if pairs:
        first, rest = total[:, : total.shape[1] % 2], total[:, total.shape[1] % 2 :]
        rest = (rest[:, ::2] + rest[:, 1::2]).div_(2)
        total = torch.cat([first, rest], 1) if first.shape[1] else rest
    return functional.pad(total.to(x.dtype), (0, 0, 0, 1, 0, 1))


def time_pool(x: Tensor, shift: Tensor | None, residual: Tensor | None, pairs: bool) -> Tensor:
    """x + shift + residual, its mean over pairs of frames, and a row and a column of zeros at the end of every frame.

    The first frame of an odd number keeps to itself. In float32 inside, rounded once. No gradients.

    Args:
        x: (B, T, H, W, C) of any floating dtype; copied unless contiguous.
        shift: (C,) of any floating dtype.
        residual: like x.
        pairs: take means; else only add up and pad.

    Returns:
        (B, T', H + 1, W + 1, C) in x's dtype; T' is T / 2, rounded up, with `pairs`, else T.
    """
    given = [tensor for tensor in (x, shift, residual) if tensor is not None]
    if not runs_triton(*given) or x.numel() == 0:
        return time_pool_reference(x, shift, residual, pairs)
    x = x.contiguous()
    clips, frames, height, width, size = x.shape
    pooled = -(-frames // 2) if pairs else frames
    out = torch.empty((clips, pooled, height + 1, width + 1, size), dtype=x.dtype, device=x.device)
    tile = padded(size)
    rows = max(1, min(512, TILE // tile))
    blocks = -(-(height + 1) * (width + 1) // rows)
    _pool[(clips * pooled * blocks,)](
        x,
        x if shift is None else shift,
        x if residual is None else residual.contiguous(),
        out,
        blocks,
        frames,
        pooled,
        height,
        width,
        size,
        SHIFT=shift is not None,
        RESIDUAL=residual is not None,
        PAIRS=pairs,
        ROWS=rows,
        SIZE=tile,
        num_warps=8,
    )
    return out


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _sum(x, residual, at, moved, inside, RESIDUAL: tl.constexpr):
        """x + shift + residual."""
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + moved
        if RESIDUAL:
            value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        return value

    @triton.jit
    def _pool(
        x,
        shift,
        residual,
        out,
        blocks,
        frames,
        pooled,
        height,
        width,
        size,
        SHIFT: tl.constexpr,
        RESIDUAL: tl.constexpr,
        PAIRS: tl.constexpr,
        ROWS: tl.constexpr,
        SIZE: tl.constexpr,
    ):
        """Programs go by frame of the result and block: ROWS pixels of it."""
        frame, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
        clip, time = frame // pooled, frame % pooled
        column = tl.arange(0, SIZE)
        real = column < size
        pixel = block * ROWS + tl.arange(0, ROWS)
        line, place = pixel // (width + 1), pixel % (width + 1)
        inside = ((line < height) & (place < width))[:, None] & real[None, :]
        within = line * width + place
        moved = tl.load(shift + column, mask=real, other=0.0).to(tl.float32)[None, :] if SHIFT else 0.0
        # The last frame of a pair; a frame that keeps to itself is a pair with itself.
        last = clip * frames + (2 * time + 1 - frames % 2 if PAIRS else time)
        row = last.to(tl.int64) * height * width + within
        value = _sum(x, residual, row[:, None] * size + column[None, :], moved, inside, RESIDUAL)
        if PAIRS:
            first = clip * frames + tl.maximum(2 * time - frames % 2, 0)
            row = first.to(tl.int64) * height * width + within
            value += _sum(x, residual, row[:, None] * size + column[None, :], moved, inside, RESIDUAL)
            value *= 0.5
        target = frame.to(tl.int64) * (height + 1) * (width + 1) + pixel
        stored = (pixel < (height + 1) * (width + 1))[:, None] & real[None, :]
        result = tl.where(inside, value, 0.0).to(out.dtype.element_ty)
        tl.store(out + target[:, None] * size + column[None, :], result, mask=stored)
