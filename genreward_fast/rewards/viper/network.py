"""An autoregressive model of frames: a GPT-2 over their codes, frame by frame and row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from genreward_fast.encoders.sources import read_transformers_model
from genreward_fast.rewards.frame_model.codec import FrameCodec

FRAMES = 16
"""That fit into the context: the present one and 15 before it."""

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "paper": {"n_layer": 8, "n_head": 8, "n_embd": 512},
    "tiny": {"n_layer": 2, "n_head": 4, "n_embd": 64},
}


def build_network(codec: FrameCodec, preset: str, frames: int = FRAMES) -> GPT2LMHeadModel:
    """An untrained one, with weights from the global generator; the token behind the codes begins a sequence."""
    begin = codec.vocabulary
    config = GPT2Config(
        vocab_size=codec.vocabulary + 1,
        n_positions=frames * codec.length,
        bos_token_id=begin,
        eos_token_id=begin,
        **ARCHITECTURES[preset],
    )
    return GPT2LMHeadModel(config)


def read_network(folder: Path, option: str) -> GPT2LMHeadModel:
    """
    Raises:
        UserError: missing, damaged, or another model.
    """
    return read_transformers_model(GPT2LMHeadModel, folder, "a GPT-2 of codes", option)


def code_log_likelihood(network: GPT2LMHeadModel, codes: Tensor, fresh: int) -> Tensor:
    """log p(code | all codes before it) in nats: (B, T, L) int64 to (B, fresh, L) float32, of the last `fresh` frames.

    One forward pass over the window: no frame is evaluated twice.
    """
    model: Any = network
    flat, length = codes.flatten(1), codes.shape[2]
    begin = torch.full_like(flat[:, :1], model.config.bos_token_id)
    inputs = torch.cat([begin, flat[:, :-1]], 1)
    logits = model(inputs, use_cache=False, logits_to_keep=fresh * length).logits
    chosen = flat[:, -fresh * length :].unsqueeze(-1)
    return logits.float().log_softmax(-1).gather(-1, chosen).squeeze(-1).unflatten(1, (fresh, length))
