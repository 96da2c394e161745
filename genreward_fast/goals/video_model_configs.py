"""Configurations of image-to-video transformers, and pipelines built from them with initial weights: for benchmarks
without a hub, and small ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from genreward_fast.encoders.architectures import VAE, seeded
from genreward_fast.goals.video_model import Pipeline, cast

# transformer/config.json and scheduler/scheduler_config.json of zai-org/CogVideoX-5b-I2V.
TRANSFORMER: dict[str, dict[str, Any]] = {
    "paper": {
        "num_attention_heads": 48,
        "attention_head_dim": 64,
        "in_channels": 32,
        "out_channels": 16,
        "text_embed_dim": 4096,
        "num_layers": 42,
        "sample_width": 90,
        "sample_height": 60,
        "sample_frames": 49,
        "use_rotary_positional_embeddings": True,
        "use_learned_positional_embeddings": True,
    },
    "tiny": {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 32,
        "out_channels": 16,
        "time_embed_dim": 16,
        "text_embed_dim": 24,
        "num_layers": 2,
        "sample_width": 4,
        "sample_height": 4,
        "sample_frames": 9,
        "max_text_seq_length": 12,
        "use_rotary_positional_embeddings": True,
    },
}
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
    "snr_shift_scale": 1.0,
    "timestep_spacing": "trailing",
}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Inside, tensors are made in `dtype` where nothing else is said."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def build_pipeline(
    preset: str, seed: int = 0, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Pipeline:
    """The preset's pipeline with initial weights and without a text encoder.

    The weights are drawn on `device` and in `dtype`: 5B in seconds on a GPU, in the memory that they end up in.
    """
    import diffusers

    with seeded(seed):
        if torch.device(device).type == "cuda":
            torch.cuda.manual_seed(seed)
        with torch.device(device), default_dtype(dtype):
            transformer = cast(diffusers.CogVideoXTransformer3DModel(**TRANSFORMER[preset]), dtype)
            vae = cast(diffusers.AutoencoderKLCogVideoX(**VAE[preset]), dtype)
    scheduler = diffusers.CogVideoXDDIMScheduler(**SCHEDULER)
    return diffusers.CogVideoXImageToVideoPipeline(
        tokenizer=None, text_encoder=None, vae=vae.eval(), transformer=transformer.eval(), scheduler=scheduler
    )
