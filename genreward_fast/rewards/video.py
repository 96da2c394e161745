"""The video level: how much a window of experience looks like the goal video, in a video encoder's latent space."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genreward_fast.errors import UserError
from genreward_fast.kernels.latent_cosine import centred, latent_cosine


class VideoReward(nn.Module):
    """r_video = cosine of the window's latent with the goal video's (GenReward, arXiv 2512.00961, section 3.2).

    Both latents are the encoder's mean, not a sample, so equal clips get equal rewards. The goal is encoded once.

    Most of a latent is the scene, which stands still and is the same in goal and windows. Centred, which the paper does
    not have, takes each latent's mean over time off both: what is compared is how things move.

    Attributes:
        goal: (C, T', H', W') float32, the goal's latent at unit norm.
    """

    goal: Tensor

    def __init__(self, encoder: nn.Module, goal_clip: Tensor, *, centred: bool = False):
        """
        Args:
            encoder: (B, K, H, W, 3) uint8 to (B, C, T', H', W') latent mean, on its own device.
            goal_clip: (K, H, W, 3) uint8.
            centred: whether each latent's mean over T' is taken off first.

        Raises:
            UserError: centred, and the clip is too short to have more than one latent frame.
        """
        super().__init__()
        self.encoder = encoder
        self.shape, self.centred = tuple(goal_clip.shape), centred
        with torch.no_grad():
            latent = encoder(goal_clip.unsqueeze(0)).squeeze(0).float()
            if centred and latent.shape[1] < 2:
                raise UserError(
                    f"--video-centred: clips of {len(goal_clip)} frames have one latent frame; raise --clip-frames"
                )
            latent = self._compared(latent)
            # A norm of 0 (a latent of zeros) would make the goal NaN, and every reward with it.
            self.register_buffer("goal", latent / latent.norm().clamp(min=torch.finfo(torch.float32).tiny))

    @torch.no_grad()
    def score(self, clip: Tensor) -> Tensor:
        """(B, K, H, W, 3) uint8 to (B,) float32 in [-1, 1]; 0 where the latent is all zeros."""
        if tuple(clip.shape[1:]) != self.shape:
            raise ValueError(f"clips must be (B, {', '.join(map(str, self.shape))}), not {tuple(clip.shape)}")
        return latent_cosine(self._compared(self.encoder(clip)), self.goal)

    def _compared(self, latent: Tensor) -> Tensor:
        """What the cosine is of, (..., C, T', H', W')."""
        return centred(latent) if self.centred else latent
