"""Numbers as distributions over fixed bins: their mean, and the cross-entropy with two-hot codes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from genreward_fast.kernels.triton_support import HAS_TRITON, padded, rows_of, runs_triton, wide


def twohot_mean_reference(logits: Tensor, bins: Tensor) -> Tensor:
    """What `twohot_mean` computes, in plain float32 PyTorch."""
    probs = wide(logits.detach()[..., : len(bins)]).softmax(-1)
    half = bins.shape[0] // 2
    return ((probs[..., half + 1 :] - probs[..., :half].flip(-1)) * bins[half + 1 :]).sum(-1)


def twohot_loss_reference(
    logits: Tensor,
    bins: Tensor,
    target: Tensor,
    second: Tensor | None = None,
    second_scale: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """What `twohot_loss` computes, in plain float32 PyTorch."""
    for axis, size in enumerate(target.shape):
        logits = logits.narrow(axis, 0, size)
    log_probs = wide(logits[..., : len(bins)]).log_softmax(-1)
    loss = _cross_entropy(log_probs, bins, target.detach())
    if second is not None:
        more = _cross_entropy(log_probs, bins, second.detach())
        loss = loss + (more if second_scale == 1 else second_scale * more)
    return loss if weight is None else weight.detach() * loss


def _cross_entropy(log_probs: Tensor, bins: Tensor, target: Tensor) -> Tensor:
    last = bins.shape[0] - 1
    above = torch.searchsorted(bins, target.contiguous(), right=True)
    below = (above - 1).clamp(min=0)
    above = above.clamp(max=last)
    # A target that is not a number must not pass for one beyond the last bin.
    alone = torch.where(target.isnan(), target, torch.ones_like(target))
    to_below = torch.where(below == above, alone, (target - bins[below]).abs())
    to_above = torch.where(below == above, alone, (target - bins[above]).abs())
    total = to_below + to_above
    picked = log_probs.gather(-1, torch.stack([below, above], -1))
    return -(picked * torch.stack([to_above / total, to_below / total], -1)).sum(-1)


def twohot_mean(logits: Tensor, bins: Tensor) -> Tensor:
    """The mean of softmax(logits) over the bins. Mirrored pairs are summed first: equal probabilities give exactly 0.

    Args:
        logits: (..., bins or more) of any floating dtype; those beyond the bins play no part.
        bins: (bins,) float32, ascending, odd in number, each the negative of its mirror.

    Returns:
        (...) float32, without gradients.
    """
    if not runs_triton(logits, bins) or logits.numel() == 0:
        return twohot_mean_reference(logits, bins)
    logits = logits.detach().contiguous()
    mean = torch.empty(logits.shape[:-1], dtype=torch.float32, device=logits.device)
    tile, width = _tile(logits), logits.shape[-1]
    _mean[(-(-mean.numel() // tile["ROWS"]),)](logits, bins, mean, mean.numel(), width, len(bins), **tile)
    return mean


def twohot_loss(
    logits: Tensor,
    bins: Tensor,
    target: Tensor,
    second: Tensor | None = None,
    second_scale: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of softmax(logits) with the two-hot code of each target, with a gradient by the logits.

    The code is linear between the two neighbouring bins, and all weight is on the last bin beyond it. A target that is
    NaN gives NaN.

    Args:
        logits: (..., bins or more) of any floating dtype; those beyond the bins play no part, and their gradient is 0.
        bins: (bins,) float32, ascending.
        target: (...) float32, a constant. One axis may be shorter than that of the logits; those beyond play no part,
            and their gradient is 0.
        second: like `target`; the cross-entropy with it, times `second_scale`, is added.
        weight: like `target`, multiplies the sum.

    Returns:
        Float32, of the target's shape.
    """
    if not runs_triton(logits, bins, target) or target.numel() == 0:
        return twohot_loss_reference(logits, bins, target, second, second_scale, weight)
    return _TwoHotLoss.apply(logits, bins, target, second, second_scale, weight)


def _periods(logits: Tensor, target: Tensor) -> tuple[int, int]:
    """Of how many rows of logits that follow each other, how many at their start have a target."""
    for axis, (long, short) in enumerate(zip(logits.shape[:-1], target.shape)):
        if long != short:
            rest = math.prod(target.shape[axis + 1 :])
            return long * rest, short * rest
    return target.numel(), target.numel()


def _tile(logits: Tensor) -> dict[str, int]:
    """The rows and columns that one program takes."""
    width = padded(logits.shape[-1])
    return {"ROWS": max(1, 2048 // width), "SIZE": width, "num_warps": 4}


class _TwoHotLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        bins: Tensor,
        target: Tensor,
        second: Tensor | None,
        second_scale: float,
        weight: Tensor | None,
    ) -> Tensor:
        logits, target = logits.contiguous(), target.contiguous()
        # What is not given is never read: anything stands in for it.
        constants = [target, *(target if x is None else x.contiguous() for x in (second, weight))]
        ctx.second_scale = second_scale
        ctx.tile = _tile(logits) | {"TWO": second is not None, "WEIGHTED": weight is not None}
        ctx.save_for_backward(logits, bins, *constants)
        loss = torch.empty(target.shape, dtype=torch.float32, device=logits.device)
        sizes = loss.numel(), *_periods(logits, target), logits.shape[-1], len(bins)
        grid = (-(-loss.numel() // ctx.tile["ROWS"]),)
        _loss[grid](logits, bins, *constants, second_scale, loss, *sizes, **ctx.tile)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, bins, *constants = ctx.saved_tensors
        by_logits = torch.empty_like(logits)
        grad, step = rows_of(grad, logits)
        width = logits.shape[-1]
        rows = logits.numel() // width
        sizes = rows, *_periods(logits, constants[0]), width, len(bins)
        grid = (-(-rows // ctx.tile["ROWS"]),)
        _backward[grid](grad, step, logits, bins, *constants, ctx.second_scale, by_logits, *sizes, **ctx.tile)
        return by_logits, None, None, None, None, None


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _mean(logits, bins, mean, rows, width, count, ROWS: tl.constexpr, SIZE: tl.constexpr):
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        pair = tl.arange(0, SIZE // 2)
        half = count // 2
        inside = (row < rows)[:, None] & (pair < half)[None, :]
        middle = row * width + half
        centre = tl.load(logits + middle, mask=row < rows, other=0.0).to(tl.float32)
        at = middle[:, None] + 1 + pair[None, :]
        upper = tl.load(logits + at, mask=inside, other=0.0).to(tl.float32)
        at = middle[:, None] - 1 - pair[None, :]
        lower = tl.load(logits + at, mask=inside, other=0.0).to(tl.float32)
        top = tl.max(tl.where(inside, tl.maximum(upper, lower), -float("inf")), 1)
        top = tl.maximum(top, centre)
        upper = tl.where(inside, tl.exp(upper - top[:, None]), 0.0)
        lower = tl.where(inside, tl.exp(lower - top[:, None]), 0.0)
        total = tl.sum(upper + lower, 1) + tl.exp(centre - top)
        place = tl.load(bins + half + 1 + pair, mask=pair < half, other=0.0)
        # The difference first: of two quotients the compiler may make one rounded and one unrounded product.
        found = tl.sum((upper - lower) / total[:, None] * place[None, :], 1)
        tl.store(mean + row, found, mask=row < rows)

    @triton.jit
    def _code(bins, target, bin_at, valid, count):
        """The two bins next to each target, and their weights."""
        passed = (bin_at[None, :] <= target[:, None]) & valid[None, :]
        above = tl.sum(passed.to(tl.int32), 1)
        below = tl.maximum(above - 1, 0)
        above = tl.minimum(above, count - 1)
        alone = tl.where(target != target, target, 1.0)
        to_below = tl.where(below == above, alone, tl.abs(target - tl.load(bins + below)))
        to_above = tl.where(below == above, alone, tl.abs(target - tl.load(bins + above)))
        total = to_below + to_above
        return below, above, to_above / total, to_below / total

    @triton.jit
    def _entropy(start, bins, wanted, bin_at, valid, top, offset, known, count):
        """The cross-entropy of rows that start at `start`; top + offset is the logarithm of their powers' sum."""
        below, above, on_below, on_above = _code(bins, wanted, bin_at, valid, count)
        at_below = tl.load(start + below, mask=known, other=0.0).to(tl.float32) - top - offset
        at_above = tl.load(start + above, mask=known, other=0.0).to(tl.float32) - top - offset
        return -(on_below * at_below + on_above * at_above)

    @triton.jit
    def _error(probs, bins, wanted, bin_at, valid, column, count):
        """The gradient of the cross-entropy by the logits."""
        below, above, on_below, on_above = _code(bins, wanted, bin_at, valid, count)
        code = tl.where(column[None, :] == below[:, None], on_below[:, None], 0.0)
        code += tl.where(column[None, :] == above[:, None], on_above[:, None], 0.0)
        return (on_below + on_above)[:, None] * probs - code

    @triton.jit
    def _loss(
        logits,
        bins,
        target,
        second,
        weight,
        second_scale,
        loss,
        rows,
        period,
        used,
        width,
        count,
        ROWS: tl.constexpr,
        SIZE: tl.constexpr,
        TWO: tl.constexpr,
        WEIGHTED: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        column = tl.arange(0, SIZE)
        valid = column < count
        inside = (row < rows)[:, None] & valid[None, :]
        start = logits + (row // used * period + row % used) * width
        value = tl.load(start[:, None] + column[None, :], mask=inside, other=0.0).to(tl.float32)
        value = tl.where(valid[None, :], value, -float("inf"))
        top = tl.max(value, 1)
        offset = tl.log(tl.sum(tl.exp(value - top[:, None]), 1))
        bin_at = tl.load(bins + column, mask=valid, other=0.0)
        wanted = tl.load(target + row, mask=row < rows, other=0.0)
        result = _entropy(start, bins, wanted, bin_at, valid, top, offset, row < rows, count)
        if TWO:
            wanted = tl.load(second + row, mask=row < rows, other=0.0)
            result += second_scale * _entropy(start, bins, wanted, bin_at, valid, top, offset, row < rows, count)
        if WEIGHTED:
            result *= tl.load(weight + row, mask=row < rows, other=0.0)
        tl.store(loss + row, result, mask=row < rows)

    @triton.jit
    def _backward(
        grad,
        step,
        logits,
        bins,
        target,
        second,
        weight,
        second_scale,
        by_logits,
        rows,
        period,
        used,
        width,
        count,
        ROWS: tl.constexpr,
        SIZE: tl.constexpr,
        TWO: tl.constexpr,
        WEIGHTED: tl.constexpr,
    ):
        """Of each `period` rows, those from `used` on have no target."""
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        column = tl.arange(0, SIZE)
        valid = column < count
        at = row[:, None] * width + column[None, :]
        known = (row < rows) & (row % period < used)
        place = row // period * used + row % period
        inside = known[:, None] & valid[None, :]
        value = tl.load(logits + at, mask=inside, other=0.0).to(tl.float32)
        value = tl.where(valid[None, :], value, -float("inf"))
        power = tl.exp(value - tl.max(value, 1)[:, None])
        probs = power / tl.sum(power, 1)[:, None]
        bin_at = tl.load(bins + column, mask=valid, other=0.0)
        wanted = tl.load(target + place, mask=known, other=0.0)
        result = _error(probs, bins, wanted, bin_at, valid, column, count)
        if TWO:
            wanted = tl.load(second + place, mask=known, other=0.0)
            result += second_scale * _error(probs, bins, wanted, bin_at, valid, column, count)
        factor = tl.load(grad + place * step, mask=known, other=0.0)
        if WEIGHTED:
            factor *= tl.load(weight + place, mask=known, other=0.0)
        result = tl.where(inside, result * factor[:, None], 0.0)
        written = (row < rows)[:, None] & (column < width)[None, :]
        tl.store(by_logits + at, result.to(by_logits.dtype.element_ty), mask=written)
