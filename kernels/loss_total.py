"""The sum of several losses' weighted means, and statistics of many tensors, in two launches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genreward_fast.kernels.triton_support import HAS_TRITON, runs_triton

BLOCK = 4096


def loss_total_reference(
    losses: Sequence[Tensor], scales: Sequence[float], others: Sequence[Tensor] = ()
) -> tuple[Tensor, Tensor]:
    """What `loss_total` computes, in plain PyTorch."""
    vectors = [*losses, *others]
    means = [x.mean() for x in vectors]
    rows = [
        torch.stack(means),
        torch.stack([x.abs().mean() for x in vectors]),
        torch.stack([(x - x.mean()).square().sum() / (x.numel() - 1) for x in vectors]).sqrt(),
    ]
    return torch.stack([mean * scale for mean, scale in zip(means, scales)]).sum(), torch.stack(rows)


def loss_total(
    losses: Sequence[Tensor], scales: Sequence[float], others: Sequence[Tensor] = ()
) -> tuple[Tensor, Tensor]:
    """Σ scale · mean(loss), and statistics. Without gradients.

    Args:
        losses: float32 of any shapes, none empty.
        scales: as many numbers.
        others: more float32 tensors, only for the statistics.

    Returns:
        The sum, 0-d; and (3, K) float32 for the K = len(losses) + len(others) tensors: the mean, the mean magnitude,
        and the standard deviation (NaN for a single number).
    """
    if not runs_triton(*losses, *others):
        return loss_total_reference(losses, scales, others)
    vectors = tuple(x.contiguous() for x in (*losses, *others))
    statistics = torch.empty(3, len(vectors), dtype=torch.float32, device=vectors[0].device)
    shares = torch.empty(len(losses), dtype=torch.float32, device=vectors[0].device)
    _statistics[(len(vectors),)](
        vectors,
        tuple(x.numel() for x in vectors),
        tuple(float(x) for x in scales),
        statistics,
        shares,
        COUNT=len(vectors),
        LOSSES=len(losses),
        SIZE=BLOCK,
        num_warps=8,
    )
    return shares.sum(), statistics


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
