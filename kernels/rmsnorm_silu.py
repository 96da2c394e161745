"""RMS norm followed by SiLU, and its gradients: one pass over memory each way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from genreward_fast.kernels.column_sums import PARTIALS, column_sums
from genreward_fast.kernels.triton_support import HAS_TRITON, padded, runs_triton, wide

MAX_PARTIALS = PARTIALS
"""Most partial sums over rows; they are added up in a fixed order."""


def rmsnorm_silu_reference(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """What `rmsnorm_silu` computes, in plain PyTorch with float32 inside."""
    pieces = wide(x).unflatten(-1, (-1, scale.shape[-1]))
    normed = functional.rms_norm(pieces, scale.shape[-1:], None, eps) * scale
    return functional.silu(normed).flatten(-2).to(x.dtype)


def rmsnorm_silu_backward_reference(grad: Tensor, x: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """What `rmsnorm_silu_backward` computes, in plain PyTorch with float32 inside."""
    pieces, grad = (wide(value).unflatten(-1, (-1, scale.shape[-1])) for value in (x, grad))
    rate = (pieces.square().mean(-1, keepdim=True) + eps).rsqrt()
    unit = pieces * rate
    normed = unit * scale
    gate = normed.sigmoid()
    by_normed = grad * gate * (1 + normed * (1 - gate))
    by_unit = by_normed * scale
    by_x = (rate * (by_unit - unit * (by_unit * unit).mean(-1, keepdim=True))).to(x.dtype)
    sums = [value.view(-1, *scale.shape).sum(0, dtype=pieces.dtype) for value in (by_normed * unit, by_x)]
    return by_x.flatten(-2), torch.stack(sums)


def rmsnorm_silu(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """silu(x / sqrt(mean(x²) + eps) · scale) over the last axis, in float32 inside, with gradients.

    Args:
        x: (..., G · C) of any floating dtype: G pieces of C, each normed by itself.
        scale: (G, C) float32; (C,) if there is one piece.
        eps: added to the mean square.

    Returns:
        Of x's shape and dtype.
    """
    if not runs_triton(x, scale) or x.numel() == 0:
        return rmsnorm_silu_reference(x, scale, eps)
    return _RMSNormSiLU.apply(x, scale, eps)


def rmsnorm_silu_forward(x: Tensor, scale: Tensor, eps: float, out: Tensor) -> None:
    """`rmsnorm_silu` without gradients, into `out`, which like x is contiguous."""
    if not runs_triton(x, scale):
        out.copy_(rmsnorm_silu_reference(x, scale, eps))
        return
    rows, groups, size, block, width = _layout(x, scale)
    _forward[(-(-rows // block), groups)](x, scale, out, rows, size, eps, ROWS=block, SIZE=width, num_warps=4)


def rmsnorm_silu_backward(
    grad: Tensor, x: Tensor, scale: Tensor, eps: float, out: Tensor | None = None, sums: bool = True
) -> tuple[Tensor, Tensor | None]:
    """The gradients of `rmsnorm_silu` by x (into `out`, if given) and, with `sums`, by scale.

    If x comes out of a linear layer, the sum over rows of the gradient by x is that by the layer's bias.

    Args:
        grad, x: (..., G · C) contiguous.
        scale: as in `rmsnorm_silu`.

    Returns:
        By x, of its shape and dtype; (2, *scale.shape) float32, by scale and the sum over rows of what was returned
        by x, or None.
    """
    if not runs_triton(grad, x, scale):
        by_x, totals = rmsnorm_silu_backward_reference(grad, x, scale, eps)
        return (by_x if out is None else out.copy_(by_x)), totals if sums else None
    out = torch.empty_like(x) if out is None else out
    rows, groups, size, block, width = _layout(x, scale)
    if rows * groups > MAX_PARTIALS * block and width <= 2048:  # as much memory on its way with half the programs
        block = min(64, 2 * block)
    blocks = -(-rows // block)
    per_program = -(-blocks // MAX_PARTIALS)
    programs = -(-blocks // per_program)
    partial = torch.empty((programs if sums else 0, 2, *scale.shape), dtype=torch.float32, device=x.device)
    _backward[(programs, groups)](
        grad,
        x,
        scale,
        out,
        partial,
        rows,
        size,
        eps,
        per_program,
        ROWS=block,
        SIZE=width,
        SUMS=sums,
        num_warps=_warps(block, width),
    )
    return out, column_sums(partial) if sums else None


def _layout(x: Tensor, scale: Tensor) -> tuple[int, int, int, int, int]:
    """Rows of each group, groups, their size, and the block of rows and columns that one program takes at a time."""
    size = scale.shape[-1]
    groups = scale.numel() // size
    width = padded(size)
    return x.numel() // (size * groups), groups, size, max(1, min(64, 2048 // width)), width


def _warps(block: int, width: int) -> int:
    """Warps of a program of the gradients, so that a thread holds few values of each kind."""
    return max(4, min(16, block * width // 512))


class _RMSNormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, scale)
        ctx.eps = eps
        out = torch.empty_like(x)
        rmsnorm_silu_forward(x, scale, eps, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, scale = ctx.saved_tensors
        by_x, sums = rmsnorm_silu_backward(grad.contiguous(), x, scale, ctx.eps)
        assert sums is not None
        return by_x, sums[0], None


if HAS_TRITON:
    import triton
    import triton.language as tl

    from genreward_fast.kernels.normed_rows import normed_rows, normed_rows_backward

    @triton.jit
    def _forward(x, scale, y, rows, size, eps, ROWS: tl.constexpr, SIZE: tl.constexpr):
        """Program (block, group): ROWS rows of one group."""
        group, groups = tl.program_id(1), tl.num_programs(1)
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        column = tl.arange(0, SIZE)
        inside = (row < rows)[:, None] & (column < size)[None, :]
        at = (row * groups + group)[:, None] * size + column[None, :]
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        factor = tl.load(scale + group * size + column, mask=column < size, other=0.0)
        tl.store(y + at, normed_rows(value, factor, size, eps).to(y.dtype.element_ty), mask=inside)

    @triton.jit
    def _backward(
        grad,
        x,
        scale,
        by_x,
        partial,
        rows,
        size,
        eps,
        per_program,
        ROWS: tl.constexpr,
        SIZE: tl.constexpr,
        SUMS: tl.constexpr,
    ):
        """Program (p, group): `per_program` blocks of ROWS rows of one group; its shares of the scale's gradient and of
        the sum of by_x, as it is rounded, go to partial[p, :, group]."""
        group, groups = tl.program_id(1), tl.num_programs(1)
        column = tl.arange(0, SIZE)
        factor = tl.load(scale + group * size + column, mask=column < size, other=0.0)
        of_scale, of_x = tl.zeros([ROWS, SIZE], tl.float32), tl.zeros([ROWS, SIZE], tl.float32)
        for block in range(per_program):
            row = (tl.program_id(0).to(tl.int64) * per_program + block) * ROWS + tl.arange(0, ROWS)
            inside = (row < rows)[:, None] & (column < size)[None, :]
            at = (row * groups + group)[:, None] * size + column[None, :]
            value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
            by_y = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
            by_value, by_factor = normed_rows_backward(by_y, value, factor, size, eps)
            result = by_value.to(by_x.dtype.element_ty)
            tl.store(by_x + at, result, mask=inside)
            if SUMS:
                of_scale += by_factor
                of_x += result.to(tl.float32)
        if SUMS:
            at = (tl.program_id(0) * 2 * groups + group) * size + column
            tl.store(partial + at, tl.sum(of_scale, 0), mask=column < size)
            tl.store(partial + at + groups * size, tl.sum(of_x, 0), mask=column < size)
