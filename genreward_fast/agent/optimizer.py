"""LaProp with adaptive gradient clipping."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

Gradients = list[Tensor] | tuple[Tensor, ...]


class LaProp:
    """Adaptive gradient clipping (Brock et al. 2021, per whole tensor), then LaProp (Ziyin et al. 2020).

    g ← g / max(1, ‖g‖ / (agc · max(agc_min, ‖p‖))); ν ← β₂ν + (1 - β₂)g²; u = g / (√ν̂ + eps); μ ← β₁μ + (1 - β₁)u;
    p ← p - lr_n μ̂, with both moments' bias corrected. Unlike in Adam and in common LaProp code the learning rate
    stays outside the momentum. Update n (from 0) uses lr · min(n, warmup) / warmup: the first changes no parameter,
    while the moments already move.

    `eps` is far below float32's normal numbers, so nothing here may flush denormals to zero.

    What changes from update to update is kept in tensors on the device, so that `apply` can be recorded in a CUDA graph
    and replayed, with `advance` before each replay; `step` does both.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, Tensor]],
        lr: float,
        warmup: int,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-20,
        agc: float = 0.3,
        agc_min: float = 1e-3,
    ) -> None:
        self.names, self.parameters = map(list, zip(*parameters))
        self.lr, self.warmup, self.beta1, self.beta2 = lr, warmup, beta1, beta2
        self.eps, self.agc, self.agc_min = eps, agc, agc_min
        self.step_count = 0
        self.mu = [torch.zeros_like(p, requires_grad=False) for p in self.parameters]
        self.nu = [torch.zeros_like(p, requires_grad=False) for p in self.parameters]
        device = self.parameters[0].device
        self._rate = torch.zeros((), device=device)  # -lr_n over the bias correction of μ
        self._nu_correction = torch.ones((), device=device)

    @torch.no_grad()
    def clip(self, gradients: Gradients) -> tuple[list[Tensor], Tensor]:
        """The clipped gradients, and the norm (0-d) of all gradients together before clipping."""
        norms = torch._foreach_norm(gradients)
        limits = torch._foreach_norm(self.parameters)
        torch._foreach_clamp_min_(limits, self.agc_min)
        torch._foreach_mul_(limits, self.agc)
        ratios = torch._foreach_div(norms, limits)
        torch._foreach_clamp_min_(ratios, 1.0)
        torch._foreach_reciprocal_(ratios)
        return list(torch._foreach_mul(gradients, ratios)), torch.stack(norms).norm()

    def advance(self) -> None:
        """Counts the next update and writes its learning rate and bias corrections to the device, without waiting."""
        lr = self.lr * min(self.step_count, self.warmup) / self.warmup if self.warmup else self.lr
        self.step_count += 1
        self._rate.fill_(-lr / (1 - self.beta1**self.step_count))
        self._nu_correction.fill_(1 - self.beta2**self.step_count)

    @torch.no_grad()
    def apply(self, gradients: Gradients) -> Tensor:
        """The update that the last `advance` has counted, of the parameters in place.

        Args:
            gradients: one for each parameter, in their order; they are left as they are.

        Returns:
            The norm (0-d) of all gradients together before clipping.
        """
        clipped, norm = self.clip(gradients)
        torch._foreach_mul_(self.nu, self.beta2)
        torch._foreach_addcmul_(self.nu, clipped, clipped, 1 - self.beta2)
        scale = torch._foreach_div(self.nu, self._nu_correction)
        torch._foreach_sqrt_(scale)
        torch._foreach_add_(scale, self.eps)
        torch._foreach_div_(clipped, scale)
        torch._foreach_mul_(self.mu, self.beta1)
        torch._foreach_add_(self.mu, clipped, alpha=1 - self.beta1)
        torch._foreach_add_(self.parameters, torch._foreach_mul(self.mu, self._rate))
        return norm

    def step(self, gradients: Gradients) -> Tensor:
        """`advance` and `apply`."""
        self.advance()
        return self.apply(gradients)

    def state_dict(self) -> dict[str, Any]:
        """Step count and moments by parameter name; the tensors are the live ones."""
        return {
            "step": self.step_count,
            "mu": dict(zip(self.names, self.mu)),
            "nu": dict(zip(self.names, self.nu)),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over the values of a `state_dict` of the same parameters."""
        self.step_count = int(state["step"])
        for name, mu, nu in zip(self.names, self.mu, self.nu):
            mu.copy_(state["mu"][name])
            nu.copy_(state["nu"][name])
