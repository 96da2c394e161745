"""Sums over rows in float32, in a fixed order: of a gradient for a bias, and of the partial sums of other kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from genreward_fast.kernels.triton_support import HAS_TRITON, padded, runs_triton

PARTIALS = 256
"""Partial sums for a kernel to leave: two programs for a multiprocessor of the largest chips, one tile to add up."""
LONG = 2048
"""With more rows they are first added up in pieces."""
PIECES = 64


def column_sums_reference(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """What `column_sums` computes, in plain PyTorch."""
    return x.sum(0, dtype=torch.promote_types(x.dtype, torch.float32)).to(dtype)


def column_sums(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The sum over the first axis, in float32, rounded once.

    A program takes as few columns as a sector of memory holds, and all their rows at once. That fills the chip with
    short programs where a general reduction, which gives threads to columns first, leaves most of it idle.

    Args:
        x: (R, ...) of any floating dtype; copied unless each row is contiguous.
        dtype: of the result.

    Returns:
        x's shape without the first axis.
    """
    if not runs_triton(x) or x.numel() == 0:
        return column_sums_reference(x, dtype)
    flat = x.flatten(1)
    if flat.stride(1) != 1 and flat.shape[1] > 1:
        flat = flat.contiguous()
    if len(flat) > LONG:
        flat = _launch(flat, min(64, max(16, padded(flat.shape[1]))), 64, PIECES, torch.float32)
    width = max(8, 32 // flat.element_size())
    height = min(256, padded(len(flat)))
    return _launch(flat, width, height, 1, dtype).view(x.shape[1:])


def _launch(x: Tensor, width: int, height: int, pieces: int, dtype: torch.dtype) -> Tensor:
    """At most `pieces` sums over rows, (pieces, columns)."""
    rows, columns = x.shape
    blocks = -(-rows // height)
    per_program = -(-blocks // pieces)
    pieces = -(-blocks // per_program)
    out = torch.empty((pieces, columns), dtype=dtype, device=x.device)
    grid = (-(-columns // width), pieces)
    _sum[grid](x, x.stride(0), out, rows, columns, per_program, ROWS=height, COLUMNS=width, num_warps=4)
    return out


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _sum(x, stride, out, rows, columns, per_program, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
        """Program (c, p): `per_program` blocks of ROWS rows of COLUMNS columns, to out[p]."""
        column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        for block in range(per_program):
            row = (tl.program_id(1).to(tl.int64) * per_program + block) * ROWS + tl.arange(0, ROWS)
            inside = (row < rows)[:, None] & (column < columns)[None, :]
            total += tl.load(x + row[:, None] * stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
        at = tl.program_id(1) * columns + column
        tl.store(out + at, tl.sum(total, 0).to(out.dtype.element_ty), mask=column < columns)
