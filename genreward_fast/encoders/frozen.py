"""What all encoders are: modules that never learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from genreward_fast.encoders.graphed import Graphed


class FrozenEncoder(nn.Module):
    """A module whose weights are fixed; a subclass ends its constructor with `freeze`."""

    def __init__(self) -> None:
        super().__init__()
        self._graphed: list[Graphed] = []

    def graphed(self, function: Callable[..., Tensor]) -> Graphed:
        """`function`, which uses this encoder's weights, as CUDA graphs on CUDA."""
        self._graphed.append(Graphed(function))
        return self._graphed[-1]

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

    def forget(self) -> None:
        """Drops whatever is kept from one call to the next, the CUDA graphs first of all."""
        for graphed in self._graphed:
            graphed.forget()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """What `to` and its like go through: the weights' memory may move, which is where graphs read them."""
        self.forget()
        return super()._apply(fn, recurse)
