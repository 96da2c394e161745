"""Small models in the libraries' own formats, as a user would have them on disk."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import open_clip
import pytest
from diffusers import AutoencoderKLCogVideoX
from open_clip.push_to_hf_hub import save_config_for_hf
from open_clip.transform import PreprocessCfg
from safetensors.torch import save_file
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from genreward_fast.encoders.architectures import seeded

VAE = {
    "block_out_channels": (4, 4, 8, 8),
    "layers_per_block": 1,
    "latent_channels": 6,
    "norm_num_groups": 2,
    "sample_height": 32,
    "sample_width": 32,
}
DINO = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_register_tokens": 2,
    "use_gated_mlp": True,
    "hidden_act": "silu",
    "initializer_range": 0.2,
}
CLIP = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 16, "head_width": 8, "layers": 1},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    with seeded(1):
        AutoencoderKLCogVideoX(**VAE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dino")
    with seeded(2):
        DINOv3ViTModel(DINOv3ViTConfig(**DINO)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    with seeded(3):
        model = open_clip.CLIP(**deepcopy(CLIP))
    open_clip.model.set_model_preprocess_cfg(model, vars(PreprocessCfg(size=32)).copy())
    save_config_for_hf(model, folder / "open_clip_config.json", model_config=deepcopy(CLIP))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder
