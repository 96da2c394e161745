"""The tiny image-to-video model before it has learned anything, and its folder in diffusers' layout."""

from __future__ import annotations

import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from genreward_fast.encoders.architectures import seeded
from genreward_fast.envs.tasks import TASKS
from genreward_fast.goals.captions import captions
from genreward_fast.goals.video_model import Pipeline, Transformer
from genreward_fast.goals.video_model_configs import SCHEDULER

FRAMES = 17
"""Of a video: 4n + 1, about as many as the 16 of a window's clip."""
TOKENS = 24
TEXT_DIM = 64
# One token a latent: a puck is smaller than a patch of two.
TRANSFORMER: dict[str, Any] = {
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "in_channels": 32,
    "out_channels": 16,
    "time_embed_dim": 64,
    "text_embed_dim": TEXT_DIM,
    "num_layers": 5,
    "sample_width": 16,
    "sample_height": 16,
    "sample_frames": FRAMES,
    "patch_size": 1,
    "max_text_seq_length": TOKENS,
    "use_rotary_positional_embeddings": True,
}
TEXT_ENCODER: dict[str, Any] = {
    "d_model": TEXT_DIM,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.0,
}
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789'-,."


def build_tokenizer() -> T5Tokenizer:
    """Knows the words of all tasks' captions, and spells others."""
    words = sorted({word for task in TASKS for caption in captions(task) for word in caption.split()})
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0)]
    spelled = [(letter, -10.0) for letter in _LETTERS]
    return T5Tokenizer(vocab=[*special, ("▁", -9.0), *((f"▁{word}", -1.0) for word in words), *spelled], extra_ids=0)


def token_ids(tokenizer: T5Tokenizer, texts: list[str]) -> Tensor:
    """(N, TOKENS) int64, as diffusers' pipeline makes them."""
    ids: Any = tokenizer(
        texts, padding="max_length", max_length=TOKENS, truncation=True, add_special_tokens=True, return_tensors="pt"
    )
    return ids.input_ids


class Generator(nn.Module):
    """Transformer and text encoder, which learn together, and the moving average of both, which is what is kept."""

    def __init__(self, vocabulary: int, seed: int, transformer: dict[str, Any]) -> None:
        super().__init__()
        config = T5Config(vocab_size=vocabulary, **TEXT_ENCODER)
        with seeded(seed):
            self.transformer: Transformer = diffusers.CogVideoXTransformer3DModel(**transformer)
            self.text_encoder: Any = T5EncoderModel(config)
        self.average = _frozen_copy(self.transformer)
        self.average_text = _frozen_copy(self.text_encoder)

    @torch.no_grad()
    def follow(self, far: float) -> None:
        """Moves the average towards what learns, less and less."""
        average = [*self.average.parameters(), *self.average_text.parameters()]
        learned = [*self.transformer.parameters(), *self.text_encoder.parameters()]
        torch._foreach_lerp_(average, learned, 0.001 + 0.05 * (1 - min(far, 1.0)) ** 2)


def _frozen_copy(module: Any) -> Any:
    return deepcopy(module).requires_grad_(False)


def save_model(generator: Generator, tokenizer: T5Tokenizer, vae: Any, folder: Path) -> None:
    """The averaged weights as float16 in the layout of diffusers' pipeline, whose autoencoder stands beside the folder.

    `CogVideoXImageToVideoPipeline.from_pretrained(folder, vae=...)` reads it.
    """
    pipeline: Pipeline = diffusers.CogVideoXImageToVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=generator.average_text.half(),
        vae=vae,
        transformer=generator.average.half(),
        scheduler=diffusers.CogVideoXDDIMScheduler(**SCHEDULER),
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    shutil.rmtree(folder / "vae")
