"""The two losses of the forward-backward representation, as functions of the networks' outputs.

Touati & Ollivier (2021), equation 12 for the representation and appendix B for the orthonormality regulariser. The goal
columns of M are the successor states s′ of the batch: with one goal for all of them every column of M would be the
same, the diagonal would reward every transition, and the orthonormality loss would have no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genreward_fast.rewards.config import Reduce


def reduce_heads(values: Tensor, reduce: Reduce) -> Tensor:
    """(K, ...) to (...): the minimum or the mean over the heads."""
    return values.amin(0) if reduce == "min" else values.mean(0)


def off_diagonal_sum(matrix: Tensor) -> Tensor:
    """(..., n, n) to (..., n): each row's sum without the diagonal."""
    return matrix.sum(-1) - matrix.diagonal(dim1=-2, dim2=-1)


def successor_loss(
    forward: Tensor,
    backward: Tensor,
    target_forward: Tensor,
    target_backward: Tensor,
    discount: Tensor,
    reduce: Reduce,
    weight: Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """½ Σ_k mean_offdiag (M_k − γ M̄)² − Σ_k mean diag M_k, with M_k = F_k Bᵀ and M̄ = reduce_k F̄_k B̄ᵀ.

    Args:
        forward: (K, n, d), F_k(s, a, z).
        backward: (n, d), B(s′) with gradient.
        target_forward: (K, n, d), F̄_k(s′, a′, z).
        target_backward: (n, d), B̄(s′).
        discount: (n,), γ, or 0 where s′ is terminal.
        reduce: how the heads of the target become one.
        weight: (n,), 0 for rows that are no transition (s′ does not follow s), else 1. Their s′ remain goal columns:
            any state may be one.

    Returns:
        The loss, and 0-d metrics without gradient.
    """
    rows = forward.shape[1]
    count = weight.sum().clamp(min=1)
    target = reduce_heads(target_forward @ target_backward.T, reduce).detach()
    measure = forward @ backward.T
    error = measure - discount.unsqueeze(-1) * target
    off_diagonal = (weight * off_diagonal_sum(error.square())).sum(-1) / (count * max(rows - 1, 1))
    diagonal = (weight * measure.diagonal(dim1=-2, dim2=-1)).sum(-1) / count
    loss = 0.5 * off_diagonal.sum() - diagonal.sum()
    with torch.no_grad():
        metrics = {
            "fb/bellman": off_diagonal.mean(),
            "fb/diagonal": diagonal.mean(),
            "fb/measure": measure.mean(),
            "fb/target": target.mean(),
        }
    return loss, metrics


def orthonormality_loss(backward: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """mean_offdiag (BBᵀ)² − 2 mean diag BBᵀ, an unbiased estimate of ‖E[BᵀB] − I‖² up to a constant.

    Args:
        backward: (n, d), B of n different states, with gradient.
    """
    rows = backward.shape[0]
    gram = backward @ backward.T
    off_diagonal = off_diagonal_sum(gram.square()).sum() / (rows * max(rows - 1, 1))
    loss = off_diagonal - 2 * gram.diagonal().mean()
    return loss, {"fb/orthonormality": loss.detach()}


def actor_loss(forward: Tensor, z: Tensor, reduce: Reduce) -> tuple[Tensor, dict[str, Tensor]]:
    """−mean reduce_k F_k(s, π(s, z), z)·z: π_z maximises the return of the reward that z stands for.

    Touati & Ollivier (2021), section 4: the policy of z is greedy with respect to F(s, ·, z)·z.

    Args:
        forward: (K, n, d), F_k(s, π(s, z), z), with gradient with respect to the action.
        z: (n, d).
    """
    value = reduce_heads((forward * z).sum(-1), reduce).mean()
    return -value, {"fb/actor_value": value.detach()}
