"""What all encoders are: modules that never learn."""

from __future__ import annotations

from typing import Self

import torch
from torch import nn


class FrozenEncoder(nn.Module):
    """A module whose weights are fixed; a subclass ends its constructor with `freeze`."""

    def freeze(self) -> None:
        """Puts everything into eval mode, without gradients."""
        self.eval()
        self.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode, also inside a module that is being trained."""
        return super().train(False)
