"""What an update takes of a device's memory, said before anything is allocated."""

from __future__ import annotations

import os

import torch

from genreward_fast.agent.config import IMAGE_SIZE, AgentConfig
from genreward_fast.agent.encoder import MULTIPLIERS
from genreward_fast.errors import UserError

# Fitted to the peak of live tensors in updates of sizes tiny to 25M on a CPU. A CUDA graph of an update takes less: on
# an H100 PyTorch reserved 1.8 GB for size 12M and 4.6 GB for 50M, where these give 3.2 and 6.2.
_ELEMENT = {"bfloat16": 2, "float32": 3, "float64": 6}  # bytes; some of what bfloat16 keeps is float32 anyway
_COPIES = 3.9  # of each feature map that the backward pass still needs: before and after pooling, norm and activation
_PIXEL_COPIES = 4.5  # of the image in what losses are in
_LATENT_COPIES = 10
_IMAGINED_FEATURES, _IMAGINED_LAYERS, _IMAGINED_BINS = 2, 25, 2
_WORKSPACE = 250 * 10**6  # of cuDNN and cuBLAS


def parameter_count(config: AgentConfig, action_size: int = 4) -> int:
    """Trained parameters, without making them."""
    from genreward_fast.agent.model import Model

    with torch.device("meta"):
        return sum(p.numel() for _, p in Model(config, action_size).trained())


def activation_bytes(config: AgentConfig) -> int:
    """What the forward pass of an update keeps for its backward pass, about."""
    sizes = config.sizes
    element, wide = _ELEMENT[config.dtype], config.wide_dtype.itemsize
    sides = [IMAGE_SIZE >> level for level in range(len(MULTIPLIERS))]
    channels = [sizes.depth * multiplier for multiplier in MULTIPLIERS]
    encoder = sum(side * side * channel for side, channel in zip(sides, channels))
    decoder = sum((side // 2) ** 2 * channel for side, channel in zip(sides, channels))
    row = _COPIES * element * (encoder + decoder)
    row += _PIXEL_COPIES * wide * IMAGE_SIZE * IMAGE_SIZE * 3
    row += _LATENT_COPIES * element * config.feature_size
    imagined = element * (_IMAGINED_FEATURES * config.feature_size + _IMAGINED_LAYERS * sizes.units)
    row += (config.imagination + 1) * (imagined + wide * _IMAGINED_BINS * config.bins)
    return int(config.batch_size * (config.batch_length + config.context) * row)


def required_bytes(config: AgentConfig, action_size: int = 4) -> int:
    """Peak memory of training an agent, about: parameters, moments, gradients, activations, workspaces.

    The replay and rewards come on top.
    """
    parameters, wide = parameter_count(config, action_size), config.wide_dtype.itemsize
    kept = parameters * (3 * wide + config.compute_dtype.itemsize)  # with both moments, and a copy to compute with
    passing = max(activation_bytes(config), 4 * wide * parameters)  # the optimiser works when the activations are gone
    return kept + wide * parameters + passing + _WORKSPACE


def free_bytes(device: torch.device) -> int | None:
    """What can be allocated on the device now; None where nobody knows."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    if device.type != "cpu":
        return None
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        return 1024 * int(fields["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_memory(config: AgentConfig, action_size: int, device: torch.device | str) -> None:
    """Raises UserError if training would not fit into what is free on the device."""
    device = torch.device(device)
    required, free = required_bytes(config, action_size), free_bytes(device)
    if free is None or required <= free:
        return
    where = f"GPU {device.index or 0}" if device.type == "cuda" else "this machine"
    raise UserError(
        f"updates of size {config.size} with batch size {config.batch_size} and length {config.batch_length} need "
        f"about {required / 1e9:.1f} GB and {where} has {free / 1e9:.1f} GB free: {(required - free) / 1e9:.1f} GB "
        f"are missing; lower --batch-size, --batch-length or --size"
    )
