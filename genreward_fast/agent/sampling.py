"""Where every random draw of the agent comes from: one seam, so that draws can be recorded and given back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from genreward_fast.agent.distributions import one_hot
from genreward_fast.kernels.latent_sample import latent_sample

Place = Literal["posterior", "prior"]
"""Which latent is drawn: an observed row's, or an imagined step's."""


Drawing = tuple[Tensor | None, Tensor | None]
"""Numbers to draw with, or else what to take."""


class Sampler(Protocol):
    """Draws latents and actions. `step` counts from 0 within one scan over time, or one imagination."""

    def latent(self, logits: Tensor, unimix: float, place: Place, step: int) -> tuple[Tensor, Tensor]:
        """Draws from `distributions.mixed_probs` of (N, stoch, classes) raw logits: (N, stoch) int64 class indices and
        their one-hots in the dtype of the logits, without gradients."""
        ...

    def sequence(self, place: Place, shape: tuple[int, ...], device: torch.device) -> Drawing:
        """For the latents (N, steps, stoch) of a whole scan or imagination at once: float32 numbers in [0, 1) to draw
        them by inversion, or the int64 class indices to take; the other is None."""
        ...

    def drew(self, place: Place, index: Tensor) -> None:
        """Is told what the numbers of `sequence` have drawn, (N, steps, stoch) int64."""
        ...

    def noise(self, shape: tuple[int, ...], device: torch.device) -> Drawing:
        """For the actions (N, steps, A) of a whole imagination: float32 normal numbers, or the actions to take."""
        ...

    def acted(self, action: Tensor) -> None:
        """Is told what the numbers of `noise` have become, (N, steps, A) float32."""
        ...

    def action(self, mean: Tensor, stddev: Tensor, step: int) -> Tensor:
        """(N, A) float32 means and deviations to (N, A) float32 draws of the normal."""
        ...


class RandomSampler:
    """Draws from its own generator on the device."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self.generator = torch.Generator(device).manual_seed(seed)

    def latent(self, logits: Tensor, unimix: float, place: Place, step: int) -> tuple[Tensor, Tensor]:
        # Inversion: one uniform number for each latent, and no synchronisation with the host.
        uniform = torch.rand(logits.shape[:-1], generator=self.generator, device=logits.device)
        return latent_sample(logits.detach(), uniform, unimix)

    def sequence(self, place: Place, shape: tuple[int, ...], device: torch.device) -> Drawing:
        return torch.rand(shape, generator=self.generator, device=device), None

    def drew(self, place: Place, index: Tensor) -> None:
        pass

    def noise(self, shape: tuple[int, ...], device: torch.device) -> Drawing:
        return torch.randn(shape, generator=self.generator, device=device), None

    def acted(self, action: Tensor) -> None:
        pass

    def action(self, mean: Tensor, stddev: Tensor, step: int) -> Tensor:
        noise = torch.randn(mean.shape, generator=self.generator, device=mean.device)
        return torch.addcmul(mean, stddev, noise)


@dataclass
class Draws:
    """All draws of one update, B sequences of T rows, N = B * T imagined trajectories of H steps.

    Attributes:
        posterior: (B, T, stoch) int64 class indices.
        prior: (N, H, stoch) int64 class indices.
        action: (N, H, A) float32; more steps than H do no harm.
    """

    posterior: Tensor
    prior: Tensor
    action: Tensor


class RecordedSampler:
    """Gives back the draws of an earlier update, whatever the distributions are now."""

    def __init__(self, draws: Draws) -> None:
        self.draws = draws

    def latent(self, logits: Tensor, unimix: float, place: Place, step: int) -> tuple[Tensor, Tensor]:
        index = (self.draws.posterior if place == "posterior" else self.draws.prior)[:, step]
        return index, one_hot(index, logits.shape[-1], logits.dtype)

    def sequence(self, place: Place, shape: tuple[int, ...], device: torch.device) -> Drawing:
        return None, (self.draws.posterior if place == "posterior" else self.draws.prior)[:, : shape[1]]

    def drew(self, place: Place, index: Tensor) -> None:
        pass

    def noise(self, shape: tuple[int, ...], device: torch.device) -> Drawing:
        return None, self.draws.action[:, : shape[1]]

    def acted(self, action: Tensor) -> None:
        pass

    def action(self, mean: Tensor, stddev: Tensor, step: int) -> Tensor:
        return self.draws.action[:, step]


class RecordingSampler:
    """Passes the draws of another sampler on, and keeps them."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self._latents: dict[Place, list[Tensor]] = {"posterior": [], "prior": []}
        self._actions: list[Tensor] = []

    def latent(self, logits: Tensor, unimix: float, place: Place, step: int) -> tuple[Tensor, Tensor]:
        index, onehot = self.sampler.latent(logits, unimix, place, step)
        self._latents[place].append(index)
        return index, onehot

    def sequence(self, place: Place, shape: tuple[int, ...], device: torch.device) -> Drawing:
        return self.sampler.sequence(place, shape, device)

    def drew(self, place: Place, index: Tensor) -> None:
        self._latents[place].extend(index.unbind(1))

    def noise(self, shape: tuple[int, ...], device: torch.device) -> Drawing:
        return self.sampler.noise(shape, device)

    def acted(self, action: Tensor) -> None:
        self._actions.extend(action.unbind(1))

    def action(self, mean: Tensor, stddev: Tensor, step: int) -> Tensor:
        action = self.sampler.action(mean, stddev, step)
        self._actions.append(action)
        return action

    def draws(self) -> Draws:
        """What one update has drawn since this object was made."""
        return Draws(
            posterior=torch.stack(self._latents["posterior"], 1),
            prior=torch.stack(self._latents["prior"], 1),
            action=torch.stack(self._actions, 1),
        )
