"""λ-returns and the range that scales them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def lambda_return(
    reward: Tensor, terminal: Tensor, last: Tensor, bootstrap: Tensor, discount: float, lam: float
) -> Tensor:
    """R_t = r_{t+1} + γ_{t+1} ((1 - λ_{t+1}) v_{t+1} + λ_{t+1} R_{t+1}), and R_{T-1} = v_{T-1}, for t = 0..T-2.

    γ_t = `discount` * (1 - terminal_t) and λ_t = `lam` * (1 - last_t) (Nature 2025, "Critic learning").

    Args:
        reward: (N, T) float32, r_t, of arriving at step t.
        terminal: (N, T) bool, or the float32 probability that the episode ends at t.
        last: (N, T) bool or float32; where 1, the return does not continue beyond t.
        bootstrap: (N, T) float32, v_t.

    Returns:
        (N, T - 1) float32.
    """
    live = (1 - terminal.float())[:, 1:] * discount
    cont = (1 - last.float())[:, 1:] * lam
    fixed = (reward[:, 1:] + (1 - cont) * live * bootstrap[:, 1:]).unbind(1)
    decay = (live * cont).unbind(1)
    value = bootstrap[:, -1]
    returns = []
    for t in reversed(range(len(fixed))):
        value = fixed[t] + decay[t] * value
        returns.append(value)
    return torch.stack(returns[::-1], 1)


class ReturnRange(nn.Module):
    """Running percentiles of the returns (Nature 2025, "Actor learning").

    Both start at 0 and are not debiased; the state is two float32 scalars on the device.

    Attributes:
        gather: makes the returns of all processes out of this one's, where several train together.
    """

    low: Tensor
    high: Tensor
    levels: Tensor
    gather: Callable[[Tensor], Tensor] | None = None

    def __init__(self, rate: float, limit: float, low: float, high: float) -> None:
        super().__init__()
        self.rate, self.limit = rate, limit
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("levels", torch.tensor([low / 100, high / 100]), persistent=False)

    @torch.no_grad()
    def update(self, returns: Tensor) -> None:
        """Moves the range towards the percentiles (linearly interpolated) of all elements of `returns`."""
        returns = returns if self.gather is None else self.gather(returns)
        low, high = torch.quantile(returns.detach().flatten(), self.levels)
        self.low.mul_(1 - self.rate).add_(low, alpha=self.rate)
        self.high.mul_(1 - self.rate).add_(high, alpha=self.rate)

    def scale(self) -> Tensor:
        """() float32: the width of the range, at least `limit`."""
        return (self.high - self.low).clamp(min=self.limit)
