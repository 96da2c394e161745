"""The losses of DreamerV3, each before its mean, all in float32, or in float64 if the networks compute in that."""

from __future__ import annotations

from torch import Tensor

from genreward_fast.agent.distributions import TwoHot
from genreward_fast.kernels.triton_support import wide


def image_loss(pixels: Tensor, image: Tensor) -> Tensor:
    """Squared error summed over height, width and channel.

    Args:
        pixels: (..., H, W, 3) in [0, 1], of any float dtype.
        image: (..., H, W, 3) uint8.
    """
    pixels = wide(pixels)
    return (pixels - image.to(pixels.dtype) / 255).square().sum((-3, -2, -1))


def critic_loss(value: TwoHot, returns: Tensor, slow: Tensor, slow_scale: float, weight: Tensor) -> Tensor:
    """Two-hot cross-entropy with the returns, plus `slow_scale` times that with the slow critic's mean.

    Args:
        value: over (N, H), or more along one of the axes, which then play no part.
        returns, slow, weight: (N, H), constants. `weight` is 0 where a step does not count.
    """
    return value.loss(returns, slow, slow_scale, weight)
