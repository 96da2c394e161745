"""Noise whose every draw has a number, so that a resumed run, or another grouping of the frames, draws the same."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


class NumberedDraws:
    """Noise levels and noises in an order that depends on a seed alone (and on the kind of device).

    Attributes:
        drawn: how many there were so far.
    """

    def __init__(self, seed: int, levels: tuple[int, int], device: torch.device) -> None:
        """
        Args:
            levels: the first, and the one behind the last.
        """
        self.seed, self.levels, self.device = seed, levels, device
        self.drawn = 0
        self._generator = torch.Generator(device)

    def next(self, count: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """(count,) int64 levels and (count, *shape) float32 standard normal noise."""
        levels, noises = [], []
        for number in range(self.drawn, self.drawn + count):
            digest = hashlib.sha256(f"{self.seed} {number}".encode()).digest()
            self._generator.manual_seed(int.from_bytes(digest[:7], "big"))
            levels.append(torch.randint(*self.levels, (), generator=self._generator, device=self.device))
            noises.append(torch.randn(shape, generator=self._generator, device=self.device))
        self.drawn += count
        return torch.stack(levels), torch.stack(noises)
