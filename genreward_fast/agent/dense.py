"""Linear layers, alone or with norm and SiLU, whose gradients by vectors take few launches."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from genreward_fast.kernels.column_sums import column_sums
from genreward_fast.kernels.rmsnorm_silu import rmsnorm_silu, rmsnorm_silu_backward, rmsnorm_silu_forward
from genreward_fast.kernels.triton_support import runs_triton


def linear(x: Tensor, weight: Tensor, bias: Tensor, rounded: Tensor, zeros: Tensor | None = None) -> Tensor:
    """x W^T + b; the gradient by b is summed in float32 and stays so.

    Args:
        x: (..., inputs).
        weight: (outputs, inputs) in x's dtype.
        bias: (outputs,) float32; gets the gradient, and is not read where Triton runs.
        rounded: `bias` in x's dtype; gets no gradient.
        zeros: (more, inputs) in x's dtype. Where Triton runs, the result is (..., outputs + more), the added ones 0:
            matrix products are slow where a row's length is no multiple of 16 bytes. Their gradient must be finite.
    """
    if not runs_triton(x, weight, bias) or x.numel() == 0:
        return F.linear(x, weight, bias.to(x.dtype))
    return _Linear.apply(x, weight, bias, rounded, zeros)


def dense(x: Tensor, weight: Tensor, bias: Tensor, rounded: Tensor, scale: Tensor, eps: float) -> Tensor:
    """`linear`, then `rmsnorm_silu` with `scale` and `eps`; the norm's gradient kernel sums that by b, too."""
    if not runs_triton(x, weight, bias, scale) or x.numel() == 0:
        return rmsnorm_silu(linear(x, weight, bias, rounded), scale, eps)
    return _Dense.apply(x, weight, bias, rounded, scale, eps)


def _products(ctx: Any, x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The gradients by x and weight, where they are wanted, from that by x W^T."""
    by_x = grad @ weight if ctx.needs_input_grad[0] else None
    rows = grad.flatten(0, -2)
    return by_x, rows.t() @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, rounded: Tensor, zeros: Tensor | None) -> Tensor:
        ctx.outputs = len(weight)
        if zeros is not None and len(zeros):
            weight, rounded = torch.cat([weight, zeros]), torch.cat([rounded, zeros[:, 0]])
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, rounded)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        by_bias = column_sums(grad.flatten(0, -2))[: ctx.outputs] if ctx.needs_input_grad[2] else None
        x, weight = ctx.saved_tensors
        by_x, by_weight = _products(ctx, x, weight, grad)
        return by_x, None if by_weight is None else by_weight[: ctx.outputs], by_bias, None, None


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, rounded: Tensor, scale: Tensor, eps: float
    ) -> Tensor:
        before = F.linear(x, weight, rounded)
        ctx.save_for_backward(x, weight, before, scale)
        ctx.eps = eps
        out = torch.empty_like(before)
        rmsnorm_silu_forward(before, scale, eps, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, before, scale = ctx.saved_tensors
        by_before, sums = rmsnorm_silu_backward(grad.contiguous(), before, scale, ctx.eps)
        assert sums is not None
        return *_products(ctx, x, weight, by_before), sums[1].flatten(), None, sums[0], None
