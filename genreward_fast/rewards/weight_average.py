"""An average of weights over the updates so far, of which the last ones count most."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def update_average(average: list[Tensor], weights: list[Tensor], updates: Tensor, power: float) -> None:
    """Takes the n-th update's weights into an average in which the i-th update's count about as i to `power`.

    Exactly, they count i^(power + 1) − (i − 1)^(power + 1). The share of the new ones is 1 − (1 − 1/n)^(power + 1): the
    power function average of Karras et al. 2024 (arXiv 2312.02696, section 3.1). Unlike an exponential one it needs no
    number that suits the length of the learning.

    Args:
        average: changed in place.
        weights: of the same shapes.
        updates: 0-d float32 on their device, n ≥ 1; it is not read back.
    """
    share = -torch.expm1((power + 1) * torch.log1p(-1 / updates))
    difference = torch._foreach_sub(weights, average)
    torch._foreach_mul_(difference, share)
    torch._foreach_add_(average, difference)
