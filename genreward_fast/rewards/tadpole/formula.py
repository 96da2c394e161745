"""The reward of TADPoLe (arXiv 2407.01903, equations 2 to 4) from three noises."""

from __future__ import annotations

import torch
from torch import Tensor

from genreward_fast.rewards.tadpole.config import TadpoleConfig


def symlog(x: Tensor) -> Tensor:
    """sign(x)·log(1 + |x|), elementwise (DreamerV3's)."""
    return x.sign() * x.abs().log1p()


def terms(conditional: Tensor, unconditional: Tensor, noise: Tensor) -> Tensor:
    """Alignment ‖ε_c − ε_u‖² and reconstruction ‖ε_u − ε‖² − ‖ε_c − ε‖², each ‖·‖² the mean over (C, H, W).

    Args:
        conditional, unconditional: (..., C, H, W), ε as predicted with the text and without.
        noise: of the same shape, ε as it was drawn.

    Returns:
        (..., 2) float32.
    """

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return (a.float() - b.float()).square().mean(dim=(-3, -2, -1))

    alignment = distance(conditional, unconditional)
    return torch.stack([alignment, distance(unconditional, noise) - distance(conditional, noise)], dim=-1)


def reward_of(values: Tensor, config: TadpoleConfig) -> Tensor:
    """symlog(w₁·alignment) + symlog(w₂·reconstruction): (..., 2) to (...)."""
    return symlog(config.align * values[..., 0]) + symlog(config.reconstruct * values[..., 1])
