"""The configurations of the presets' encoders, and models built from them with seeded initial weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import open_clip
import torch
from diffusers import AutoencoderKLCogVideoX
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from genreward_fast.encoders.clip_weights import quiet

# CogVideoX-5B-I2V's autoencoder (THUDM, arXiv 2408.06072): 4x in time, 8x in space, 16 channels.
# The tiny one is as deep in scales, with narrow layers; its few first channels are what keeps it fast on a CPU.
VAE: dict[str, dict[str, Any]] = {
    "paper": {
        "block_out_channels": (128, 256, 256, 512),
        "layers_per_block": 3,
        "latent_channels": 16,
        "norm_num_groups": 32,
        "temporal_compression_ratio": 4,
        "sample_height": 480,
        "sample_width": 720,
        "scaling_factor": 0.7,
    },
    "tiny": {
        "block_out_channels": (16, 32, 48, 48),
        "layers_per_block": 1,
        "latent_channels": 16,
        "norm_num_groups": 8,
        "temporal_compression_ratio": 4,
        "sample_height": 128,
        "sample_width": 128,
        "scaling_factor": 1.0,
    },
}

# DINOv3 ViT-S/16+ (arXiv 2508.10104): SwiGLU of hidden size 1536, 4 register tokens, axial RoPE of base 100.
DINO: dict[str, dict[str, Any]] = {
    "paper": {
        "image_size": 224,
        "patch_size": 16,
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "num_register_tokens": 4,
        "use_gated_mlp": True,
        "hidden_act": "silu",
        "rope_theta": 100.0,
    },
    # With the default deviation of 0.02 an untrained network this narrow maps all images to nearly one point.
    "tiny": {
        "image_size": 64,
        "patch_size": 16,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_register_tokens": 4,
        "use_gated_mlp": True,
        "hidden_act": "silu",
        "rope_theta": 100.0,
        "initializer_range": 0.1,
    },
}

# The paper's is the library's own ViT-B-32. More than half of the tiny one is the table of the tokenizer's 49408
# words, which is why its texts are so narrow; its small patches show it a puck of a few pixels.
CLIP: dict[str, dict[str, Any]] = {
    "paper": open_clip.get_model_config("ViT-B-32"),
    "tiny": {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 64, "patch_size": 8, "width": 128, "head_width": 32, "layers": 3},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2},
    },
}


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draws on the CPU depend on `seed` alone inside the block, and nothing outside it notices."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every accelerator as well
        yield


def build_vae(preset: str, seed: int) -> AutoencoderKLCogVideoX:
    """The preset's whole autoencoder with initial weights, float32 on the CPU."""
    with seeded(seed):
        return AutoencoderKLCogVideoX(**VAE[preset])


def build_dino(preset: str, seed: int) -> DINOv3ViTModel:
    """The preset's DINOv3 with initial weights, float32 on the CPU."""
    with seeded(seed):
        return DINOv3ViTModel(DINOv3ViTConfig(**DINO[preset]))


def build_clip(preset: str, seed: int) -> tuple[nn.Module, Callable[[list[str]], Tensor], dict[str, Any]]:
    """The preset's OpenCLIP with initial weights, float32 on the CPU; its tokenizer; its configuration."""
    config = deepcopy(CLIP[preset])
    with seeded(seed), quiet():
        model = open_clip.CLIP(**deepcopy(config))
    preprocess = PreprocessCfg(size=config["vision_cfg"]["image_size"])
    open_clip.model.set_model_preprocess_cfg(model, preprocess.__dict__.copy())
    tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
    return model, tokenizer, config
