"""Features to mean 0 and deviation 1 over the experience so far."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FeatureNorm(nn.Module):
    """(ψ − mean) / deviation, each dimension by itself, over the rows it was shown.

    Features of pictures of one scene may be nearly parallel: what tells one state from another is then a small part of
    them, which a network sees better once the common part is gone.

    Mean and second moment are averages of all batches up to the `memory`-th, exponential ones from there on. `observe`
    never waits for the device.

    Attributes:
        mean, deviation: (D,) float32.
        batches: 0-d float32, how many were shown.
    """

    mean: Tensor
    square: Tensor
    batches: Tensor

    def __init__(self, size: int, memory: int = 1000):
        super().__init__()
        self.memory = memory
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("square", torch.ones(size))  # mean of (ψ − mean)²
        self.register_buffer("batches", torch.zeros(()))

    @property
    def deviation(self) -> Tensor:
        # A dimension that hardly varies beside its mean holds rounding errors alone: it stays near 0.
        return self.square.sqrt().clamp(min=1e-6).maximum(1e-4 * self.mean.abs())

    @torch.no_grad()
    def observe(self, feature: Tensor) -> None:
        """Takes (n, D) rows into account."""
        self.batches.add_(1)
        share = self.batches.clamp(max=self.memory).reciprocal()
        difference = feature.mean(0) - self.mean
        square = feature.var(0, correction=0) + (1 - share) * difference.square()
        self.square.lerp_(square, share)
        self.mean.add_(share * difference)

    def forward(self, feature: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return (feature - self.mean) / self.deviation
