"""The losses of `fb_losses` and their gradients without the n × n matrices, where the heads' mean is the target.

M_k − γ M̄ = U_k Vᵀ with rows u = [f, −γ mean_k f̄] and v = [b, b̄] of length 2d. So Σ_j (u·v_j)² = u (VᵀV) uᵀ, and the
same goes for the gradients: all sums over pairs are products with matrices of second moments, (2d, 2d).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from genreward_fast.kernels.precision import exact_products


def representation_loss(
    forward: Tensor,
    backward: Tensor,
    target_forward: Tensor,
    target_backward: Tensor,
    discount: Tensor,
    weight: Tensor,
    ortho: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`successor_loss` with reduce "mean", plus `ortho` times `orthonormality_loss`, and the metrics of both.

    Arguments are those of `successor_loss`, (K, n, d) and (n, d). The products run without TF32: squared
    errors are small differences of them.
    """
    with exact_products():
        loss, *values = _RepresentationLoss.apply(
            forward, backward, target_forward.detach(), target_backward.detach(), discount, weight, ortho
        )
    return loss, dict(zip(("fb/bellman", "fb/diagonal", "fb/measure", "fb/target", "fb/orthonormality"), values))


class _RepresentationLoss(torch.autograd.Function):
    """Computes the gradients together with the loss, with which they share nearly all work."""

    @staticmethod
    def forward(
        ctx: Any,
        forward: Tensor,
        backward: Tensor,
        target_forward: Tensor,
        target_backward: Tensor,
        discount: Tensor,
        weight: Tensor,
        ortho: float,
    ) -> tuple[Tensor, ...]:
        heads, rows, size = forward.shape
        others = max(rows - 1, 1)
        pairs = rows * others
        ctx.set_materialize_grads(False)
        row_share = weight / weight.sum().clamp(min=1)  # in the mean over transitions
        share = row_share.unsqueeze(-1)
        target = target_forward.mean(0)
        left = torch.cat([forward, (-discount.unsqueeze(-1) * target).expand(heads, -1, -1)], dim=-1)
        right = torch.cat([backward, target_backward], dim=-1)
        moments = right.T @ right
        # Column sums: what the means over all pairs are made of.
        forward_sum, target_sum, right_sum = forward.sum((0, 1)), target.sum(0), right.sum(0)

        products = (left.reshape(-1, 2 * size) @ moments).view_as(left)  # Σ_j (u·v_j) v_j
        agreement = left * right
        diagonal_error = agreement.sum(-1, keepdim=True)  # u_i·v_i
        squares = (products * left).sum(-1, keepdim=True) - diagonal_error.square()
        bellman = squares.squeeze(-1) @ row_share / others
        diagonal = agreement[..., :size].sum(-1) @ row_share

        covariance = moments[:size, :size]  # BᵀB, whose squares add up to those of BBᵀ
        norms = backward.square().sum(-1, keepdim=True)
        orthonormality = (covariance.square().sum() - norms.square().sum()) / pairs - 2 * norms.mean()
        loss = (0.5 * bellman - diagonal).sum() + ortho * orthonormality

        pair_share = share / others
        without = pair_share * diagonal_error + share  # what row i's own column adds and the diagonal takes away
        scaled = pair_share * forward
        mixed = left.reshape(-1, 2 * size).T @ scaled.reshape(-1, size)  # Σ_k Σ_i u_kiᵀ f_ki
        forward_gradient = torch.addcmul(pair_share * products[..., :size], without, backward, value=-1)
        # That of the orthonormality is 4 Σ_j (b·b_j) b_j / pairs, less each row's own part: one product for both sums.
        mixed[:size].add_(covariance, alpha=4 * ortho / pairs)
        own = norms * (4 * ortho / pairs) + 4 * ortho / rows
        backward_gradient = torch.addcmul(right @ mixed - (without * forward).sum(0), own, backward, value=-1)
        ctx.save_for_backward(forward_gradient, backward_gradient)

        measure = forward_sum.dot(right_sum[:size]) / (heads * rows**2)
        target_measure = target_sum.dot(right_sum[size:]) / rows**2
        values = (bellman.mean(), diagonal.mean(), measure, target_measure, orthonormality)
        ctx.mark_non_differentiable(*values)
        return loss, *values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        forward_gradient, backward_gradient = ctx.saved_tensors
        return gradient * forward_gradient, gradient * backward_gradient, None, None, None, None, None
