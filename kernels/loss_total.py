"""The sum of several losses' weighted means, and statistics of many tensors, in two launches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from genreward_fast.kernels.triton_support import HAS_TRITON, runs_triton

BLOCK = 4096


def loss_total_reference(
    losses: Sequence[Tensor], scales: Sequence[float], others: Sequence[Tensor] = ()
) -> tuple[Tensor, Tensor]:
    """What `loss_total` computes, in plain PyTorch."""
    vectors = [x.detach() for x in (*losses, *others)]
    means = [loss.mean() for loss in losses]
    rows = [
        torch.stack([x.mean() for x in vectors]),
        torch.stack([x.abs().mean() for x in vectors]),
        torch.stack([(x - x.mean()).square().sum() / (x.numel() - 1) for x in vectors]).sqrt(),
    ]
    return torch.stack([mean * scale for mean, scale in zip(means, scales)]).sum(), torch.stack(rows)


def loss_total(
    losses: Sequence[Tensor], scales: Sequence[float], others: Sequence[Tensor] = ()
) -> tuple[Tensor, Tensor]:
    """Σ scale · mean(loss), with gradients, and statistics.

    Args:
        losses: float32 of any shapes, none empty.
        scales: as many numbers.
        others: more float32 tensors, only for the statistics.

    Returns:
        The sum, 0-d; and (3, K) float32 for the K = len(losses) + len(others) tensors, without gradients: the mean, the
        mean magnitude, and the standard deviation (NaN for a single number).
    """
    if not runs_triton(*losses, *others):
        return loss_total_reference(losses, scales, others)
    return _LossTotal.apply(tuple(scales), tuple(x.detach() for x in others), *losses)


class _LossTotal(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scales: tuple[float, ...], others: tuple[Tensor, ...], *losses: Tensor
    ) -> tuple[Tensor, Tensor]:
        vectors = tuple(x.contiguous() for x in (*losses, *others))
        count, device = len(vectors), losses[0].device
        statistics = torch.empty(3, count, dtype=torch.float32, device=device)
        # What each loss adds, and the gradient of the sum by each of its elements.
        shares, rates = (torch.empty(len(losses), dtype=torch.float32, device=device) for _ in range(2))
        _statistics[(count,)](
            vectors,
            tuple(x.numel() for x in vectors),
            tuple(float(x) for x in scales),
            statistics,
            shares,
            rates,
            COUNT=count,
            LOSSES=len(losses),
            SIZE=BLOCK,
            num_warps=8,
        )
        ctx.save_for_backward(rates)
        ctx.shapes = [x.shape for x in losses]
        ctx.mark_non_differentiable(statistics)
        ctx.set_materialize_grads(False)
        return shares.sum(), statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        rates = ctx.saved_tensors[0] * grad
        return None, None, *(rate.expand(shape) for rate, shape in zip(rates.unbind(), ctx.shapes))


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _statistics(
        vectors,
        counts,
        scales,
        statistics,
        shares,
        rates,
        COUNT: tl.constexpr,
        LOSSES: tl.constexpr,
        SIZE: tl.constexpr,
    ):
        """Program k: tensor k. Twice over it: the deviation is from the mean."""
        which = tl.program_id(0)
        vector = vectors[0]
        count = tl.full([], counts[0], tl.int32)
        for k in tl.static_range(1, COUNT):
            if which == k:
                vector = vectors[k]
                count = tl.full([], counts[k], tl.int32)
        place = tl.arange(0, SIZE)
        total, magnitude = tl.zeros([SIZE], tl.float32), tl.zeros([SIZE], tl.float32)
        for start in range(0, count, SIZE):
            value = tl.load(vector + start + place, mask=start + place < count, other=0.0)
            total += value
            magnitude += tl.abs(value)
        mean = tl.sum(total, 0) / count
        spread = tl.zeros([SIZE], tl.float32)
        for start in range(0, count, SIZE):
            inside = start + place < count
            value = tl.load(vector + start + place, mask=inside, other=0.0) - mean
            spread += tl.where(inside, value * value, 0.0)
        tl.store(statistics + which, mean)
        tl.store(statistics + COUNT + which, tl.sum(magnitude, 0) / count)
        tl.store(statistics + 2 * COUNT + which, tl.sqrt(tl.sum(spread, 0) / (count - 1)))
        for k in tl.static_range(LOSSES):
            if which == k:
                tl.store(shares + k, mean * scales[k])
                tl.store(rates + k, scales[k] / count)
