"""Layer norm of rows to which a constant row is added first: what a residual stream leaves out (its biases)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from genreward_fast.kernels.triton_support import HAS_TRITON, padded, runs_triton, wide

TILE = 1024


def layer_norm_reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float, shift: Tensor) -> Tensor:
    """What `layer_norm` computes, in plain PyTorch with float32 inside."""
    total = wide(x) + shift
    return functional.layer_norm(total, shift.shape, weight.to(total), bias.to(total), eps).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, shift: Tensor) -> Tensor:
    """(y - mean(y)) / sqrt(variance(y) + eps) · weight + bias over the last axis, y = x + shift. No gradients.

    In float32 inside, rounded once.

    Args:
        x: (..., C) of any floating dtype; copied unless contiguous, or a matrix with contiguous rows.
        weight, bias, shift: (C,) of any floating dtype, contiguous.
        eps: added to the variance.

    Returns:
        Of x's shape and dtype, contiguous.
    """
    if not runs_triton(x, weight, bias, shift) or x.numel() == 0:
        return layer_norm_reference(x, weight, bias, eps, shift)
    if x.ndim != 2 or x.stride(1) != 1:
        x = x.contiguous()
    size = x.shape[-1]
    count, pitch = x.numel() // size, x.stride(0) if x.ndim == 2 else size
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    tile = padded(size)
    rows = max(1, TILE // tile)
    _normalise[(-(-count // rows),)](
        x,
        weight,
        bias,
        shift,
        out,
        count,
        pitch,
        size,
        eps,
        ROWS=rows,
        SIZE=tile,
        num_warps=4,
    )
    return out


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _normalise(x, weight, bias, shift, out, count, pitch, size, eps, ROWS: tl.constexpr, SIZE: tl.constexpr):
        """ROWS rows a program."""
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        column = tl.arange(0, SIZE)
        real = column < size
        inside = (row < count)[:, None] & real[None, :]
        value = tl.load(x + row[:, None] * pitch + column[None, :], mask=inside, other=0.0).to(tl.float32)
        value += tl.load(shift + column, mask=real, other=0.0).to(tl.float32)[None, :]
        mean = tl.sum(value, 1) / size
        distance = tl.where(real[None, :], value - mean[:, None], 0.0)
        rate = 1.0 / tl.sqrt(tl.sum(distance * distance, 1) / size + eps)
        factor = tl.load(weight + column, mask=real, other=0.0).to(tl.float32)
        offset = tl.load(bias + column, mask=real, other=0.0).to(tl.float32)
        result = distance * rate[:, None] * factor[None, :] + offset[None, :]
        tl.store(out + row[:, None] * size + column[None, :], result.to(out.dtype.element_ty), mask=inside)
