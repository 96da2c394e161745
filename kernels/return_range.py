"""The running percentiles of the returns, moved by one launch: a search for order statistics, bit by bit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genreward_fast.kernels.triton_support import HAS_TRITON, padded, runs_triton, wide

HELD = 16384
"""Most values that are kept in registers; more are read again for every bit."""


def move_range_reference(
    values: Tensor, low: Tensor, high: Tensor, levels: tuple[float, float], rate: float, limit: float
) -> Tensor:
    """What `move_range` does, in plain PyTorch, and without the limited size of `torch.quantile`."""
    ordered = wide(values.detach()).flatten().sort()[0]
    broken = ordered[-1].isnan()
    for state, level in ((low, levels[0]), (high, levels[1])):
        rank, share = _rank(level, len(ordered))
        found = torch.lerp(ordered[rank], ordered[min(rank + 1, len(ordered) - 1)], share)
        state.mul_(1 - rate).add_(torch.where(broken, math.nan, found), alpha=rate)
    return torch.stack([low, high, (high - low).clamp(min=limit)])


def move_range(
    values: Tensor, low: Tensor, high: Tensor, levels: tuple[float, float], rate: float, limit: float
) -> Tensor:
    """Moves `low` and `high` in place towards two percentiles of the values, by a share `rate`.

    Args:
        values: (...) float32, at least one. If one is NaN, both percentiles are.
        low, high: 0-d float32.
        levels: the two percentiles as shares in [0, 1]; linear interpolation, as in numpy.
        rate: the share of the new percentiles.
        limit: the least width.

    Returns:
        (3,) float32: low, high, and the width between them, at least `limit`.
    """
    if not runs_triton(values, low, high):
        return move_range_reference(values, low, high, levels, rate, limit)
    values = values.detach().contiguous()
    count = values.numel()
    result = torch.empty(3, dtype=torch.float32, device=values.device)
    (low_rank, low_share), (high_rank, high_share) = (_rank(level, count) for level in levels)
    size = min(HELD, padded(count))
    _move[(1,)](
        values,
        low,
        high,
        result,
        count,
        low_rank,
        low_share,
        high_rank,
        high_share,
        rate,
        limit,
        SIZE=size,
        HELD=count <= size,
        num_warps=max(1, min(16, size // 256)),
    )
    return result


def _rank(level: float, count: int) -> tuple[int, float]:
    """The place of a percentile among `count` ordered values, and its share of the way to the next one."""
    place = level * (count - 1)
    return math.floor(place), place - math.floor(place)


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _keys(values, start, count, SIZE: tl.constexpr):
        """SIZE values as integers in the same order, the highest of all beyond the end; and which are NaN."""
        at = start + tl.arange(0, SIZE)
        value = tl.load(values + at, mask=at < count, other=0.0)
        bits = value.to(tl.int32, bitcast=True)
        key = bits ^ tl.where(bits < 0, 2147483647, 0)
        return tl.where(at < count, key, 2147483647), (value != value).to(tl.int32)

    @triton.jit
    def _value(key):
        """The number whose key this is."""
        return (key ^ tl.where(key < 0, 2147483647, 0)).to(tl.float32, bitcast=True)

    @triton.jit
    def _below(key, low, high):
        """How many keys are below `low`, and, times 2³², below `high`."""
        return tl.sum((key < low).to(tl.int64) + ((key < high).to(tl.int64) << 32), 0)

    @triton.jit
    def _above(key, low):
        """The least key above `low`."""
        return tl.min(tl.where(key > low, key, 2147483647), 0)

    @triton.jit
    def _between(key, upper, rank, share, not_above, count):
        """The value at `share` of the way from rank to rank + 1, whose key is `upper` unless it is the same again."""
        lower, higher = _value(key), _value(upper)
        higher = tl.where((not_above > rank + 1) | (rank + 1 >= count), lower, higher)
        way = higher - lower
        return tl.where(share < 0.5, lower + share * way, higher - way * (1.0 - share))

    @triton.jit
    def _move(
        values,
        low,
        high,
        result,
        count,
        low_rank,
        low_share,
        high_rank,
        high_share,
        rate,
        limit,
        SIZE: tl.constexpr,
        HELD: tl.constexpr,
    ):
        """One program. The value of a rank is the highest key with no more than that many keys below it."""
        held, bad = _keys(values, 0, count, SIZE)
        broken = tl.sum(bad, 0)
        if not HELD:
            for start in range(SIZE, count, SIZE):
                key, bad = _keys(values, start, count, SIZE)
                broken += tl.sum(bad, 0)
        low_key = tl.full([], -2147483648, tl.int32)
        high_key = low_key
        for bit in range(32):
            # The top bit of a key is turned: it is set where the number is positive.
            step = (low_key * 0 + 1) << (31 - bit)
            low_try, high_try = low_key ^ step, high_key ^ step
            below = _below(held, low_try, high_try)
            if not HELD:
                for start in range(SIZE, count, SIZE):
                    key, bad = _keys(values, start, count, SIZE)
                    below += _below(key, low_try, high_try)
            low_key = tl.where((below & 0xFFFFFFFF) <= low_rank, low_try, low_key)
            high_key = tl.where((below >> 32) <= high_rank, high_try, high_key)
        not_above = _below(held, low_key + 1, high_key + 1)
        low_upper, high_upper = _above(held, low_key), _above(held, high_key)
        if not HELD:
            for start in range(SIZE, count, SIZE):
                key, bad = _keys(values, start, count, SIZE)
                not_above += _below(key, low_key + 1, high_key + 1)
                low_upper = tl.minimum(low_upper, _above(key, low_key))
                high_upper = tl.minimum(high_upper, _above(key, high_key))
        low_found = _between(low_key, low_upper, low_rank, low_share, not_above & 0xFFFFFFFF, count)
        high_found = _between(high_key, high_upper, high_rank, high_share, not_above >> 32, count)
        low_found = tl.where(broken > 0, float("nan"), low_found)
        high_found = tl.where(broken > 0, float("nan"), high_found)
        low_now = tl.load(low) * (1.0 - rate) + low_found * rate
        high_now = tl.load(high) * (1.0 - rate) + high_found * rate
        tl.store(low, low_now)
        tl.store(high, high_now)
        tl.store(result, low_now)
        tl.store(result + 1, high_now)
        width = high_now - low_now
        tl.store(result + 2, tl.where(width < limit, limit, width))
