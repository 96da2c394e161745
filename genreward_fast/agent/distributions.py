"""The distributions that DreamerV3's heads and latents are, all in float32.

Categorical latents are given by raw logits; the 1% of uniform distribution (unimix) belongs to the distribution, hence
to its samples, KL, entropy and gradients alike.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def mixed_probs(logits: Tensor, unimix: float) -> Tensor:
    """(..., classes) raw logits to float32 probabilities, a share `unimix` of them uniform."""
    probs = logits.float().softmax(-1)
    return probs * (1 - unimix) + unimix / logits.shape[-1]


def categorical_entropy(probs: Tensor) -> Tensor:
    """(..., stoch, classes) to (...): nats, summed over the latents."""
    return -(probs * probs.log()).sum((-2, -1))


def categorical_kl(probs: Tensor, other: Tensor) -> Tensor:
    """KL(probs ‖ other) of (..., stoch, classes) to (...): nats, summed over the latents."""
    return (probs * (probs.log() - other.log())).sum((-2, -1))


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
        logits: (..., bins), of any float dtype.
        bins: (bins,) float32, ascending, each the negative of its mirror.
    """

    def __init__(self, logits: Tensor, bins: Tensor) -> None:
        self.logits = logits.float()
        self.bins = bins

    def __getitem__(self, index: Any) -> TwoHot:
        """The distributions at `index` of the batch axes."""
        return TwoHot(self.logits[index], self.bins)

    def pred(self) -> Tensor:
        """(...) float32 mean. Mirrored pairs are summed first, so that equal probabilities give exactly 0."""
        probs = self.logits.softmax(-1)
        half = self.bins.shape[0] // 2
        return ((probs[..., half + 1 :] - probs[..., :half].flip(-1)) * self.bins[half + 1 :]).sum(-1)

    def loss(self, *targets: Tensor) -> Tensor:
        """Cross-entropy with the two-hot code of each target (...), summed over the targets; targets are constants.

        The code is linear between the two neighbouring bins, and all weight is on the last bin beyond it.
        """
        log_probs = self.logits.log_softmax(-1)
        losses = [self._cross_entropy(log_probs, target.detach()) for target in targets]
        return sum(losses[1:], start=losses[0])

    def _cross_entropy(self, log_probs: Tensor, target: Tensor) -> Tensor:
        last = self.bins.shape[0] - 1
        above = torch.searchsorted(self.bins, target.contiguous(), right=True)
        below = (above - 1).clamp(min=0)
        above = above.clamp(max=last)
        # A target that is not a number must not pass for one beyond the last bin.
        alone = torch.where(target.isnan(), target, torch.ones_like(target))
        to_below = torch.where(below == above, alone, (target - self.bins[below]).abs())
        to_above = torch.where(below == above, alone, (target - self.bins[above]).abs())
        total = to_below + to_above
        picked = log_probs.gather(-1, torch.stack([below, above], -1))
        return -(picked * torch.stack([to_above / total, to_below / total], -1)).sum(-1)


class Normal:
    """Independent normals over the last axis. `mean` and `stddev` are (..., A), of any float dtype."""

    def __init__(self, mean: Tensor, stddev: Tensor) -> None:
        self.mean = mean.float()
        self.stddev = stddev.float()

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
        self.logit = logit.float()

    def prob(self) -> Tensor:
        """(...): the probability of 1."""
        return self.logit.sigmoid()

    def loss(self, target: Tensor) -> Tensor:
        """Cross-entropy with a target (...) in [0, 1]."""
        return F.binary_cross_entropy_with_logits(self.logit, target, reduction="none")
