"""Means and spreads of channels that several programs have found, each of its own pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genreward_fast.kernels.triton_support import HAS_TRITON, padded, runs_triton

MOST = 512
"""Pieces of a chunk that are worth being put together in one go."""
BLOCK = 4096
FLOAT8 = torch.float8_e4m3fn
FLOAT8_MOST = 448.0
"""The largest number of that format, which has no infinity."""


@dataclass(frozen=True)
class Moments:
    """Of each of N chunks of a map with C channels, in S pieces.

    Attributes:
        values: (N, S, 2, C) float32: means, and sums of squared distances from them; whatever where nothing counts.
        counts: (N, S) float32: pixels of a piece.
    """

    values: Tensor
    counts: Tensor

    @staticmethod
    def empty(chunks: int, pieces: int, channels: int, device: torch.device) -> Moments:
        """Memory for them."""
        values = torch.empty((chunks, pieces, 2, channels), dtype=torch.float32, device=device)
        return Moments(values, torch.empty((chunks, pieces), dtype=torch.float32, device=device))

    def total(self) -> tuple[Tensor, Tensor]:
        """(N, C) each: means and variances (of the whole population) of the chunks (Chan, Golub and LeVeque 1979)."""
        counts = self.counts.unsqueeze(-1)
        known = counts > 0
        means, squares = (torch.where(known, part, 0.0) for part in self.values.unbind(2))
        number = counts.sum(1)
        mean = (means * counts).sum(1) / number
        spread = squares + counts * (means - mean.unsqueeze(1)).square()
        return mean, torch.where(known, spread, 0.0).sum(1) / number


def fewer(moments: Moments) -> Moments:
    """The same with at most `MOST` pieces, each of neighbouring ones; as they are off Triton."""
    chunks, pieces, _, channels = moments.values.shape
    if pieces <= MOST or not runs_triton(moments.values):
        return moments
    each = -(-pieces // MOST)
    made = Moments.empty(chunks, -(-pieces // each), channels, moments.values.device)
    size = padded(channels)
    _merge[made.counts.shape](
        moments.values,
        moments.counts,
        made.values,
        made.counts,
        pieces,
        channels,
        each,
        EACH=max(2, min(padded(each), BLOCK // size)),
        SIZE=size,
        num_warps=4,
    )
    return made


def to_float8(x: Tensor) -> Tensor:
    """Rounded to float8 (e4m3); what is too large becomes the largest number, as GPUs do it; NaN stays."""
    return x.clamp(-FLOAT8_MOST, FLOAT8_MOST).to(FLOAT8)


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _merge(values, counts, merged, numbers, pieces, channels, each, EACH: tl.constexpr, SIZE: tl.constexpr):
        """Program (chunk, piece): `each` pieces become one."""
        which, piece = tl.program_id(0), tl.program_id(1)
        column = tl.arange(0, SIZE)
        real = column < channels
        end = tl.minimum((piece + 1) * each, pieces)
        sums, number = tl.zeros([SIZE], tl.float32), 0.0
        for start in range(piece * each, end, EACH):
            row = start + tl.arange(0, EACH)
            count = tl.load(counts + which * pieces + row, mask=row < end, other=0.0)
            at = (which * pieces + row)[:, None] * 2 * channels + column[None, :]
            mean = tl.load(values + at, mask=(count > 0)[:, None] & real[None, :], other=0.0)
            sums += tl.sum(mean * count[:, None], 0)
            number += tl.sum(count)
        middle = sums / tl.maximum(number, 1.0)
        spread = tl.zeros([SIZE], tl.float32)
        for start in range(piece * each, end, EACH):
            row = start + tl.arange(0, EACH)
            count = tl.load(counts + which * pieces + row, mask=row < end, other=0.0)
            at = (which * pieces + row)[:, None] * 2 * channels + column[None, :]
            known = (count > 0)[:, None] & real[None, :]
            away = tl.where(known, tl.load(values + at, mask=known, other=0.0) - middle[None, :], 0.0)
            square = tl.load(values + at + channels, mask=known, other=0.0)
            spread += tl.sum(square + count[:, None] * away * away, 0)
        target = which * tl.num_programs(1) + piece
        tl.store(merged + target * 2 * channels + column, middle, mask=real)
        tl.store(merged + (target * 2 + 1) * channels + column, spread, mask=real)
        tl.store(numbers + target, number)
