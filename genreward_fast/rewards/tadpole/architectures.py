"""The configurations of the diffusion models, and models built from them with seeded initial weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, MotionAdapter, UNet2DConditionModel, UNetMotionModel

from genreward_fast.encoders.architectures import seeded
from genreward_fast.encoders.clip_weights import quiet
from genreward_fast.rewards.tadpole.model import TextDiffusion

# unet/config.json and vae/config.json of stabilityai/stable-diffusion-2-1-base; the tiny one is as deep in scales of
# its denoiser, with latents of 16 x 16 for frames of 64 x 64.
UNET: dict[str, dict[str, Any]] = {
    "paper": {
        "sample_size": 64,
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
    "tiny": {
        "sample_size": 16,
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 4,
        "cross_attention_dim": 32,
        "use_linear_projection": True,
    },
}
VAE: dict[str, dict[str, Any]] = {
    "paper": {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
    },
    "tiny": {
        "block_out_channels": (16, 32, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "sample_size": 64,
    },
}
# What Stable Diffusion 1.5, to which AnimateDiff's motion modules belong, has else than 2.1.
UNET_OF_CLIPS: dict[str, dict[str, Any]] = {
    "paper": {"attention_head_dim": 8, "cross_attention_dim": 768, "use_linear_projection": False},
    "tiny": {},
}
MOTION: dict[str, dict[str, Any]] = {
    "paper": {"motion_max_seq_length": 32},
    "tiny": {
        "block_out_channels": (32, 64),
        "motion_layers_per_block": 1,
        "motion_mid_block_layers_per_block": 1,
        "motion_num_attention_heads": 2,
        "motion_norm_num_groups": 8,
        "motion_max_seq_length": 32,
    },
}
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
TOKENS = 77


def with_motion(unet: UNet2DConditionModel, adapter: MotionAdapter) -> UNetMotionModel:
    """AnimateDiff's denoiser of clips, from one of pictures and motion modules that fit it."""
    with quiet():  # it warns of parts to be kept in float32, even of none
        return UNetMotionModel.from_unet2d(unet, adapter)


def random_model(preset: str, clips: bool, seed: int, dtype: torch.dtype, note: str) -> TextDiffusion:
    """The preset's model with initial weights and texts drawn at random, on the CPU; for benchmarks.

    Args:
        clips: with motion modules.
    """
    with seeded(seed):
        unet: Any = UNet2DConditionModel(**UNET[preset] | (UNET_OF_CLIPS[preset] if clips else {}))
        if clips:
            unet = with_motion(unet, MotionAdapter(**MOTION[preset]))
        vae = AutoencoderKL(**VAE[preset])
        embeddings = torch.randn(2, TOKENS, unet.config.cross_attention_dim)
    scheduler: Any = DDIMScheduler(**SCHEDULER)
    return TextDiffusion(unet, vae, embeddings, scheduler.alphas_cumprod, dtype=dtype, note=note)
