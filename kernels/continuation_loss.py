"""Cross-entropy of the continuation head's logit with flags, and its gradient: one launch each way."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from genreward_fast.kernels.triton_support import HAS_TRITON, rows_of, runs_triton, wide

BLOCK = 256


def continuation_loss_reference(logit: Tensor, terminal: Tensor, scale: float) -> Tensor:
    """What `continuation_loss` computes, in plain float32 PyTorch."""
    logit = wide(logit)
    return F.binary_cross_entropy_with_logits(logit, (~terminal).to(logit.dtype) * scale, reduction="none")


def continuation_loss(logit: Tensor, terminal: Tensor, scale: float) -> Tensor:
    """Cross-entropy of a Bernoulli distribution with the target `scale` · (not terminal), with a gradient by the logit.

    Args:
        logit: (...) of any floating dtype.
        terminal: (...) bool.
        scale: in [0, 1].

    Returns:
        (...) float32.
    """
    if not runs_triton(logit, terminal) or logit.numel() == 0:
        return continuation_loss_reference(logit, terminal, scale)
    return _ContinuationLoss.apply(logit, terminal, scale)


class _ContinuationLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logit: Tensor, terminal: Tensor, scale: float) -> Tensor:
        logit, terminal = logit.contiguous(), terminal.contiguous().view(torch.uint8)
        ctx.save_for_backward(logit, terminal)
        ctx.scale = scale
        loss = torch.empty(logit.shape, dtype=torch.float32, device=logit.device)
        count = logit.numel()
        _forward[(-(-count // BLOCK),)](logit, terminal, loss, count, scale, SIZE=BLOCK, num_warps=2)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logit, terminal = ctx.saved_tensors
        by_logit = torch.empty_like(logit)
        grad, step = rows_of(grad, logit)
        count = logit.numel()
        grid = (-(-count // BLOCK),)
        _backward[grid](grad, step, logit, terminal, by_logit, count, ctx.scale, SIZE=BLOCK, num_warps=2)
        return by_logit, None, None


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _forward(logit, terminal, loss, count, scale, SIZE: tl.constexpr):
        at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
        inside = at < count
        value = tl.load(logit + at, mask=inside, other=0.0).to(tl.float32)
        target = (1.0 - tl.load(terminal + at, mask=inside, other=0).to(tl.float32)) * scale
        # A maximum with 0 that keeps NaN.
        result = tl.where(value < 0.0, 0.0, value) - value * target + tl.log(1.0 + tl.exp(-tl.abs(value)))
        tl.store(loss + at, result, mask=inside)

    @triton.jit
    def _backward(grad, step, logit, terminal, by_logit, count, scale, SIZE: tl.constexpr):
        at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
        inside = at < count
        value = tl.load(logit + at, mask=inside, other=0.0).to(tl.float32)
        target = (1.0 - tl.load(terminal + at, mask=inside, other=0).to(tl.float32)) * scale
        result = (tl.sigmoid(value) - target) * tl.load(grad + at * step, mask=inside, other=0.0)
        tl.store(by_logit + at, result.to(by_logit.dtype.element_ty), mask=inside)
