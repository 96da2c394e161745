"""LaProp with adaptive gradient clipping."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from genreward_fast.agent.flat import Flat, collect
from genreward_fast.kernels.laprop import Follower, Rates, clip_reference, laprop

GradientParts = Sequence[Tensor | Sequence[Tensor]]
"""For each parameter, in their order, its gradient or several that are to be added; in its dtype or a lower one."""


class LaProp:
    """Adaptive gradient clipping (Brock et al. 2021, per whole tensor), then LaProp (Ziyin et al. 2020).

    g ← g / max(1, ‖g‖ / (agc · max(agc_min, ‖p‖))); ν ← β₂ν + (1 - β₂)g²; u = g / (√ν̂ + eps); μ ← β₁μ + (1 - β₁)u;
    p ← p - lr_n μ̂, with both moments' bias corrected. Unlike in Adam and in common LaProp code the learning rate
    stays outside the momentum. Update n (from 0) uses lr · min(n, warmup) / warmup: the first changes no parameter,
    while the moments already move.

    `eps` is far below float32's normal numbers, so nothing here may flush denormals to zero.

    What changes from update to update is kept in tensors on the device, so that `apply` can be recorded in a CUDA graph
    and replayed, with `advance` before each replay; `step` does both.

    Attributes:
        flat: the parameters, in one buffer; `mu` and `nu` are views of buffers of the same layout.
        reduce: given the gradient of all parameters as one tensor in their dtype, before anything reads it; it may
            change it in place, for instance to the mean over several processes.
    """

    def __init__(
        self,
        parameters: Flat | Iterable[tuple[str, Tensor]],
        lr: float,
        warmup: int,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-20,
        agc: float = 0.3,
        agc_min: float = 1e-3,
        copy: Tensor | None = None,
        follower: Follower | None = None,
    ) -> None:
        """Moves the parameters into one buffer, if they are not in one.

        Args:
            copy: laid out as the parameters, in another dtype, and rewritten by each update.
            follower: moves towards the last parameters after each update.
        """
        self.flat = parameters if isinstance(parameters, Flat) else Flat(parameters)
        self.lr, self.warmup, self.beta1, self.beta2 = lr, warmup, beta1, beta2
        self.rates = Rates(beta1, beta2, eps, agc, agc_min)
        self.copy, self.follower = copy, follower
        self.reduce: Callable[[Tensor], None] | None = None
        self.step_count = 0
        self._mu, self._nu, self._gradient = (self.flat.zeros() for _ in range(3))
        self.mu, self.nu = self.flat.views(self._mu), self.flat.views(self._nu)
        self._gradients = self.flat.segments.views(self._gradient)
        self._rate = self._mu.new_zeros(())  # -lr_n over the bias correction of μ
        self._nu_correction = self._mu.new_ones(())

    @property
    def buffers(self) -> tuple[Tensor, Tensor]:
        """Both moments of all parameters."""
        return self._mu, self._nu

    @torch.no_grad()
    def clip(self, gradients: GradientParts) -> tuple[list[Tensor], Tensor]:
        """The clipped gradients, and the norm (0-d) of all gradients together before clipping."""
        self._collect(gradients)
        clipped, norm = clip_reference(self._gradient, self.flat.buffer, self.flat.segments, self.rates)
        return self.flat.views(clipped), norm

    def advance(self) -> None:
        """Counts the next update and writes its learning rate and bias corrections to the device, without waiting."""
        lr = self.lr * min(self.step_count, self.warmup) / self.warmup if self.warmup else self.lr
        self.step_count += 1
        self._rate.fill_(-lr / (1 - self.beta1**self.step_count))
        self._nu_correction.fill_(1 - self.beta2**self.step_count)

    @torch.no_grad()
    def apply(self, gradients: GradientParts) -> Tensor:
        """The update that the last `advance` has counted, of the parameters in place.

        Args:
            gradients: they are left as they are.

        Returns:
            The norm (0-d) of all gradients together before clipping.
        """
        self._collect(gradients)
        if self.reduce is not None:
            self.reduce(self._gradient)
        return laprop(
            self._gradient,
            self.flat.buffer,
            self._mu,
            self._nu,
            self.flat.segments,
            self._rate,
            self._nu_correction,
            self.rates,
            self.copy,
            self.follower,
        )

    def step(self, gradients: GradientParts) -> Tensor:
        """`advance` and `apply`."""
        self.advance()
        return self.apply(gradients)

    def state_dict(self) -> dict[str, Any]:
        """Step count and moments by parameter name; the tensors are the live ones."""
        return {
            "step": self.step_count,
            "mu": dict(zip(self.flat.names, self.mu)),
            "nu": dict(zip(self.flat.names, self.nu)),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over the values of a `state_dict` of the same parameters."""
        self.step_count = int(state["step"])
        for name, mu, nu in zip(self.flat.names, self.mu, self.nu):
            mu.copy_(state["mu"][name])
            nu.copy_(state["nu"][name])

    def _collect(self, gradients: GradientParts) -> None:
        collect(self._gradients, [[g] if isinstance(g, Tensor) else g for g in gradients])
