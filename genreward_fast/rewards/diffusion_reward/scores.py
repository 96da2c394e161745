"""What Diffusion Reward says of windows of codes."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from genreward_fast.rewards.diffusion_reward.bound import evaluation_steps, gumbel_noise, sampled_bound
from genreward_fast.rewards.diffusion_reward.network import NextFrameNetwork

AT_ONCE = 128
"""Frames that are sampled in one batch: more need memory, and keep a GPU no busier."""


class Entropy:
    """Minus the entropy of the next frame given the last two, estimated as in `bound.py`."""

    def __init__(self, network: NextFrameNetwork, *, skip: int, noise_scale: float):
        """
        Args:
            skip: denoising steps left out between two that are evaluated.
            noise_scale: of the Gumbel noise that the frame is sampled with; 0 takes the most likely codes.
        """
        self.network = network.eval()
        self.schedule = network.noise_schedule()
        self.steps = evaluation_steps(len(self.schedule.log_at), skip)
        vocabulary, length = self.schedule.num_embed - 1, network.config["grid"] ** 2
        noise = gumbel_noise(len(self.steps), vocabulary, length, noise_scale)
        self.noise = noise.to(network.past_places.device)

    @torch.no_grad()
    def __call__(self, codes: Tensor, fresh: int) -> Tensor:
        """(B, T, L) int64 to (B, fresh) float32 in nats: row t is about what follows the frames t - 1 and t.

        A window's first row has no past in it; its frame stands for that, too.
        """
        before = torch.cat([codes[:, :1], codes[:, :-1]], 1)
        pasts = torch.stack([before, codes], 2)[:, -fresh:]
        return self.of_pasts(pasts.flatten(0, 1)).unflatten(0, pasts.shape[:2])

    @torch.no_grad()
    def of_pasts(self, pasts: Tensor) -> Tensor:
        """(M, 2, L) int64 to (M,) float32."""
        return torch.cat([self._bound(part) for part in pasts.split(AT_ONCE)])

    def _bound(self, past: Tensor) -> Tensor:
        predict = functools.partial(self.network.predict, past)
        return sampled_bound(predict, self.schedule, self.steps, self.noise, len(past))[0]
