"""What all encoders are: modules that never learn, and that an engine may compute for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn

from genreward_fast.encoders.graphed import Graphed
from genreward_fast.export.engine import Engine
from genreward_fast.kernels.precision import exact_products


class FrozenEncoder(nn.Module):
    """A module whose weights are fixed; a subclass ends its constructor with `freeze`.

    Attributes:
        fingerprint: sha256 over weights and configuration; the same whatever computes, and in which dtype.
        note: "" for trained weights, else what every output must say about them.
        engine: what computes in the place of `network`; None for PyTorch. `encoders/engine_source.py` makes engines.
        graphs: whether calls become CUDA graphs on CUDA, while there is no engine.
    """

    fingerprint: str
    note: str
    engine: Engine | None = None
    graphs: bool = True

    def __init__(self) -> None:
        super().__init__()
        self._graphed: list[Graphed] = []

    def graphed(self, function: Callable[..., Tensor]) -> Graphed:
        """`function`, which uses this encoder's weights, as CUDA graphs where `graphs` asks for them."""
        self._graphed.append(Graphed(function, self._may_record))
        return self._graphed[-1]

    def _may_record(self) -> bool:
        return self.graphs and self.engine is None

    def freeze(self) -> None:
        """Puts everything into eval mode, without gradients."""
        self.eval()
        self.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What `network` computes in."""
        raise NotImplementedError

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of one example of uint8 frames, the last axis the colours; `preprocess` takes a batch of them."""
        raise NotImplementedError

    @property
    def weights(self) -> nn.Module:
        """The module with the weights that `network` uses, and no others."""
        raise NotImplementedError

    def preprocess(self, frames: Tensor) -> Tensor:
        """A batch of uint8 frames to what `encode` takes."""
        raise NotImplementedError

    def network(self, pixels: Tensor) -> Tensor:
        """What the weights compute from a preprocessed batch, in one call and in the encoder's dtype."""
        raise NotImplementedError

    def encode(self, pixels: Tensor) -> Tensor:
        """`network`, or the engine in its place; a batch above the engine's largest is split."""
        with self.products(pixels.dtype, pixels):
            if self.engine is None:
                return self.network(pixels)
            return torch.cat([self.engine(part) for part in pixels.split(self.engine.manifest.max_batch or 1)])

    @staticmethod
    def products(dtype: torch.dtype, x: Tensor) -> AbstractContextManager[None]:
        """Around what computes in `dtype` where x is: products of float32 numbers are exact."""
        return exact_products() if x.is_cuda and dtype == torch.float32 else nullcontext()

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
