"""The distributions that DreamerV3's heads and latents are, all in float32, or in float64 if they are given that.

Categorical latents are given by raw logits; the 1% of uniform distribution (unimix) belongs to the distribution, hence
to its samples, KL, entropy and gradients alike.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genreward_fast.kernels.triton_support import softmax, wide
from genreward_fast.kernels.twohot import twohot_loss, twohot_mean


def mixed_probs(logits: Tensor, unimix: float) -> Tensor:
    """(..., classes) raw logits to float32 probabilities, a share `unimix` of them uniform."""
    probs = softmax(wide(logits))
    return probs * (1 - unimix) + unimix / logits.shape[-1]


def one_hot(index: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """(...) indices of any integer dtype to (..., classes), without looking at their values on the host."""
    return (index.unsqueeze(-1) == torch.arange(classes, device=index.device)).to(dtype)


def symexp_bins(count: int) -> Tensor:
    """(count,) float32: symexp(linspace(-20, 0)) and its exact mirror, with 0 in the middle."""
    half = torch.linspace(-20, 0, (count - 1) // 2 + 1, dtype=torch.float64)
    half = -torch.expm1(-half).float()
    return torch.cat([half, -half[:-1].flip(0)])


class TwoHot:
    """A distribution over fixed bins that stands for one number: its mean (Nature 2025, "Critic learning").

    Args:
        logits: (..., bins or more), of any float dtype; those beyond the bins play no part.
        bins: (bins,) float32, ascending, each the negative of its mirror.
    """

    def __init__(self, logits: Tensor, bins: Tensor) -> None:
        self._logits = logits
        self.bins = bins

    @property
    def logits(self) -> Tensor:
        """(..., bins)."""
        return self._logits[..., : len(self.bins)]

    def __getitem__(self, index: Any) -> TwoHot:
        """The distributions at `index` of the batch axes."""
        return TwoHot(self._logits[index], self.bins)

    def pred(self) -> Tensor:
        """(...) float32 mean, without gradients. Equal probabilities give exactly 0."""
        return twohot_mean(self._logits, self.bins)

    def loss(
        self,
        target: Tensor,
        second: Tensor | None = None,
        second_scale: float = 1.0,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Cross-entropy with the two-hot code of the target (...), plus `second_scale` times that of another, the sum
        times `weight`; all of them constants. They may be shorter than the batch axes along one of them.

        The code is linear between the two neighbouring bins, and all weight is on the last bin beyond it.
        """
        return twohot_loss(self._logits, self.bins, target, second, second_scale, weight)


class Normal:
    """Independent normals over the last axis. `mean` and `stddev` are (..., A), of any float dtype."""

    def __init__(self, mean: Tensor, stddev: Tensor) -> None:
        self.mean = wide(mean)
        self.stddev = wide(stddev)

    def log_prob(self, value: Tensor) -> Tensor:
        """(..., A) to (...): the log-density, summed over the last axis."""
        score = (value - self.mean) / self.stddev
        return -(0.5 * score.square() + self.stddev.log() + 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """(...): nats, summed over the last axis."""
        return (self.stddev.log() + 0.5 * math.log(2 * math.pi) + 0.5).sum(-1)


class Binary:
    """A Bernoulli distribution. `logit` is (...), of any float dtype."""

    def __init__(self, logit: Tensor) -> None:
        self.logit = wide(logit)

    def prob(self) -> Tensor:
        """(...): the probability of 1."""
        return self.logit.sigmoid()

    def loss(self, target: Tensor) -> Tensor:
        """Cross-entropy with a target (...) in [0, 1]."""
        return F.binary_cross_entropy_with_logits(self.logit, target, reduction="none")
