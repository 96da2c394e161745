"""The network of VQ-Diffusion (Gu et al., arXiv 2111.14822) that sees past frames instead of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin, Transformer2DModel, VQDiffusionScheduler
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from genreward_fast.encoders.sources import read_diffusers_model
from genreward_fast.rewards.diffusion_reward.bound import Schedule
from genreward_fast.rewards.frame_model.codec import FrameCodec

PAST_FRAMES = 2
TIMESTEPS = 100

ARCHITECTURES: dict[str, dict[str, int]] = {
    "paper": {"layers": 16, "heads": 16, "head_size": 8, "past_size": 1024},
    "tiny": {"layers": 3, "heads": 4, "head_size": 16, "past_size": 64},
}


class NextFrameNetwork(ModelMixin, ConfigMixin):
    """p(x_0 | x_t, past): of a frame's codes as they were before t steps of noise, each code by itself.

    Attributes:
        transformer: over the codes of the noised frame; it looks at the past by cross-attention.
        past_codes, past_places: what the past is shown as: a vector for each code, and for each place in each frame.
    """

    @register_to_config
    def __init__(
        self,
        vocabulary: int,
        grid: int,
        layers: int,
        heads: int,
        head_size: int,
        past_size: int,
        past_frames: int = PAST_FRAMES,
        timesteps: int = TIMESTEPS,
    ):
        super().__init__()
        self.transformer: Any = Transformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=head_size,
            num_layers=layers,
            cross_attention_dim=past_size,
            attention_bias=True,
            sample_size=grid,
            num_vector_embeds=vocabulary + 1,  # the last one stands for a code that is masked
            num_embeds_ada_norm=timesteps,
            norm_type="ada_norm",
        )
        self.past_codes = nn.Embedding(vocabulary, past_size)
        self.past_places = nn.Parameter(0.02 * torch.randn(past_frames * grid**2, past_size))

    def forward(self, noised: Tensor, past: Tensor, timestep: int) -> Tensor:
        """log p(x_0): (B, L) int64 codes and (B, frames, L) int64 past codes to (B, vocabulary, L) float32.

        The library's adaptive norms take one timestep for the whole batch.
        """
        shown = self.past_codes(past.flatten(1)) + self.past_places
        step = torch.tensor(timestep, device=noised.device)
        return self.transformer(noised, encoder_hidden_states=shown, timestep=step).sample

    def predict(self, past: Tensor, noised: Tensor, timestep: int) -> Tensor:
        """`forward`, with the past in front."""
        module: Any = self
        return module(noised, past, timestep)

    def noise_schedule(self) -> Schedule:
        """Of `timesteps` steps, on the network's device."""
        settings: Any = self.config
        schedule: Schedule = VQDiffusionScheduler(settings.vocabulary + 1, settings.timesteps)
        schedule.set_timesteps(settings.timesteps, self.past_places.device)  # moves its tables
        return schedule


def build_network(codec: FrameCodec, preset: str) -> NextFrameNetwork:
    """An untrained one, with weights from the global generator."""
    return NextFrameNetwork(codec.vocabulary, codec.grid, **ARCHITECTURES[preset])


def read_network(folder: Path, option: str) -> NextFrameNetwork:
    """
    Raises:
        UserError: missing, damaged, or another model.
    """
    return read_diffusers_model(NextFrameNetwork, folder, "a network of next frames", option)
