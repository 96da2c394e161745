"""λ-returns and the range that scales them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from genreward_fast.kernels.lambda_return import lambda_return
from genreward_fast.kernels.return_range import move_range

__all__ = ["ReturnRange", "lambda_return"]


class ReturnRange(nn.Module):
    """Running percentiles of the returns (Nature 2025, "Actor learning").

    Both start at 0 and are not debiased; the state is two scalars on the device, float32 unless the model is float64.

    Attributes:
        gather: makes the returns of all processes out of this one's, where several train together.
    """

    low: Tensor
    high: Tensor
    gather: Callable[[Tensor], Tensor] | None = None

    def __init__(self, rate: float, limit: float, low: float, high: float) -> None:
        super().__init__()
        self.rate, self.limit, self.levels = rate, limit, (low / 100, high / 100)
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    @torch.no_grad()
    def update(self, returns: Tensor) -> Tensor:
        """Moves the range towards the percentiles (linearly interpolated) of all elements of `returns`.

        Returns:
            (3,) float32: its ends and its width as they are now, which the next update leaves as they are.
        """
        returns = returns if self.gather is None else self.gather(returns)
        return move_range(returns, self.low, self.high, self.levels, self.rate, self.limit)

    def scale(self) -> Tensor:
        """() float32: the width of the range, at least `limit`."""
        return (self.high - self.low).clamp(min=self.limit)
