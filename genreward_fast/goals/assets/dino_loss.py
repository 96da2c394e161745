"""Self-supervised losses of the image encoder: DINO with Sinkhorn-Knopp centring, and KoLeo.

A few formulas of our own instead of lightly, the library that has them: it brings pytorch-lightning and hydra along.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

STUDENT_TEMPERATURE = 0.1
TEACHER_TEMPERATURE = 0.06


class Prototypes(nn.Module):
    """DINO's head (arXiv 2104.14294): (N, D) class tokens to (N, P) cosines with P prototypes.

    Frames of one camera have nearly one token in common. The batch's own mean and deviation are taken out of the
    cosines' vectors, and the prototypes do not learn: else all of them turn to what the tokens have in common, every
    assignment is 1 / P, and the loss stays at ln P.
    """

    def __init__(self, dim: int, prototypes: int = 512, hidden: int = 512, bottleneck: int = 64) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
            nn.BatchNorm1d(bottleneck, affine=False, track_running_stats=False),
        )
        self.prototypes = nn.Parameter(torch.randn(prototypes, bottleneck), requires_grad=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return functional.linear(
            functional.normalize(self.mlp(tokens), dim=-1), functional.normalize(self.prototypes, dim=-1)
        )


@torch.no_grad()
def sinkhorn(scores: Tensor, temperature: float = TEACHER_TEMPERATURE, iterations: int = 3) -> Tensor:
    """(N, P) scores to assignments: rows sum to 1, columns to nearly N / P (SwAV, arXiv 2006.09882)."""
    scaled = scores.float() / temperature
    weights = (scaled - scaled.amax(1, keepdim=True)).exp()
    for _ in range(iterations):
        weights = weights / weights.sum(0, keepdim=True).clamp_min(1e-12)
        weights = weights / weights.sum(1, keepdim=True).clamp_min(1e-12)
    return weights


def dino_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy of each student view with each teacher view that it is not (arXiv 2104.14294, equation 3).

    Args:
        student: (V, N, P) scores; the first G views are those that the teacher saw.
        teacher: (G, N, P) assignments.

    Returns:
        () mean over pairs of views and over N.
    """
    logarithms = (student.float() / STUDENT_TEMPERATURE).log_softmax(-1)
    pairs = -torch.einsum("gnp,vnp->gv", teacher, logarithms) / student.shape[1]
    other = ~torch.eye(len(teacher), len(student), dtype=torch.bool, device=student.device)
    return pairs[other].mean()


def koleo_loss(tokens: Tensor) -> Tensor:
    """Minus the mean logarithm of the distance to the nearest other of (N, D) directions (arXiv 1806.03198)."""
    units = functional.normalize(tokens.float(), dim=-1)
    with torch.no_grad():
        cosines = units @ units.T
        cosines.fill_diagonal_(-2)
        nearest = cosines.argmax(1)
    return -((units - units[nearest]).square().sum(-1) + 1e-8).sqrt().log().mean()
