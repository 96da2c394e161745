"""The losses of DreamerV3, each before its mean, all in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from genreward_fast.agent.distributions import Normal, TwoHot


def image_loss(pixels: Tensor, image: Tensor) -> Tensor:
    """Squared error summed over height, width and channel.

    Args:
        pixels: (..., H, W, 3) in [0, 1], of any float dtype.
        image: (..., H, W, 3) uint8.
    """
    return (pixels.float() - image.float() / 255).square().sum((-3, -2, -1))


def imagination_weight(con: Tensor, discount: float) -> Tensor:
    """(N, H + 1) probabilities of continuation to the weight of each step, without gradient.

    The weight of the first step is con[0], not 1: it is the chance that its state is no end of an episode.
    """
    return torch.cumprod(discount * con.detach(), 1) / discount


def actor_loss(
    policy: Normal, action: Tensor, advantage: Tensor, weight: Tensor, entropy_scale: float
) -> tuple[Tensor, Tensor]:
    """REINFORCE with an entropy bonus, and the policy's entropy.

    Args:
        policy: over (N, H, A).
        action: (N, H, A), what the policy drew.
        advantage, weight: (N, H), constants.

    Returns:
        (N, H) loss and (N, H) entropy in nats.
    """
    entropy = policy.entropy()
    gain = policy.log_prob(action.detach()) * advantage.detach() + entropy_scale * entropy
    return -weight.detach() * gain, entropy


def critic_loss(value: TwoHot, returns: Tensor, slow: Tensor, slow_scale: float, weight: Tensor) -> Tensor:
    """Two-hot cross-entropy with the returns, plus `slow_scale` times that with the slow critic's mean.

    Args:
        value: over (N, H), or more along one of the axes, which then play no part.
        returns, slow, weight: (N, H), constants. `weight` is 0 where a step does not count.
    """
    return value.loss(returns, slow, slow_scale, weight)
