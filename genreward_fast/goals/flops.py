"""How much arithmetic the video transformer is, and how much a device can do."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch


def transformer_flops(config: Mapping[str, Any], frames: int, height: int, width: int) -> tuple[int, int]:
    """Operations (a multiplication and an addition are two) of one forward pass over one video.

    The blocks' products of matrices alone, as they are nearly all: 332 TFLOP for 49 frames of 480 x 720 at 5B.

    Args:
        config: the transformer's.
        frames, height, width: of the latents.

    Returns:
        of the linear layers; of the attention.
    """
    patch, patch_t = config["patch_size"], config["patch_size_t"] or 1
    tokens = config["max_text_seq_length"] + (frames // patch_t) * (height // patch) * (width // patch)
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    linear = 24 * tokens * dim * dim  # 4 projections of the attention, and a feed-forward of 4 x dim
    attention = 4 * tokens * tokens * dim
    return config["num_layers"] * linear, config["num_layers"] * attention


def training_flops(linear: int, attention: int, *, all_weights: bool) -> int:
    """Operations of a forward and a backward pass; what gradient checkpointing computes again does not count.

    Args:
        linear, attention: of the forward pass.
        all_weights: every weight gets a gradient, or (LoRA) nearly none.
    """
    return linear * (3 if all_weights else 2) + attention * 3


def matmul_flops_per_second(device: torch.device, dtype: torch.dtype, size: int = 8192, repeats: int = 10) -> float:
    """What the device reaches with square matrices: the limit that training is measured against."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        _synchronise(device)
        start = time.perf_counter()
        torch.mm(a, b)
        _synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
