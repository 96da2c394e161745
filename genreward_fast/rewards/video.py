"""The video level: how much a window of experience looks like the goal video, in a video encoder's latent space."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genreward_fast.kernels.latent_cosine import latent_cosine


class VideoReward(nn.Module):
    """r_video = cosine of the window's latent with the goal video's (GenReward, arXiv 2512.00961, section 3.2).

    Both latents are the encoder's mean, not a sample, so equal clips get equal rewards. The goal is encoded once.

    Attributes:
        goal: (C, T', H', W') float32, the goal's latent at unit norm.
    """

    goal: Tensor

    def __init__(self, encoder: nn.Module, goal_clip: Tensor):
        """
        Args:
            encoder: (B, K, H, W, 3) uint8 to (B, C, T', H', W') latent mean, on its own device.
            goal_clip: (K, H, W, 3) uint8.
        """
        super().__init__()
        self.encoder = encoder
        self.shape = tuple(goal_clip.shape)
        with torch.no_grad():
            latent = encoder(goal_clip.unsqueeze(0)).squeeze(0).float()
            # A norm of 0 (a latent of zeros) would make the goal NaN, and every reward with it.
            self.register_buffer("goal", latent / latent.norm().clamp(min=torch.finfo(torch.float32).tiny))

    @torch.no_grad()
    def score(self, clip: Tensor) -> Tensor:
        """(B, K, H, W, 3) uint8 to (B,) float32 in [-1, 1]; 0 where the latent is all zeros."""
        if tuple(clip.shape[1:]) != self.shape:
            raise ValueError(f"clips must be (B, {', '.join(map(str, self.shape))}), not {tuple(clip.shape)}")
        return latent_cosine(self.encoder(clip), self.goal)
