"""What an agent needs of a replay to learn from its rows, wherever they are kept."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from genreward_fast.types import Batch, Latents


class Rows(Protocol):
    """Rows by position.

    Where `storage` is a CUDA device, both methods are recorded in a CUDA graph: they must not wait for the host, and
    the rows must stay the tensors that they are.
    """

    @property
    def storage(self) -> torch.device:
        """The device that keeps the rows."""
        ...

    def gather(self, index: Tensor) -> Batch:
        """The rows at `index` (B, T) int64, with images and latents, on the agent's device."""
        ...

    def write_back(self, index: Tensor, latents: Latents) -> None:
        """Replaces the latents (B, T, ...) of the rows at `index` (B, T) int64."""
        ...
