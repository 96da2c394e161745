"""Choosing the device, and saying clearly when it is not there."""

from __future__ import annotations

import torch

from genreward_fast.errors import UserError


def resolve_device(name: str) -> torch.device:
    """ "auto" is the first CUDA device if there is one, else the CPU.

    Raises:
        UserError: the name is no device, or CUDA or that GPU is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: not a device; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: only cpu and cuda are supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                f"--device {name}: PyTorch sees no CUDA GPU here; use --device cpu, or see genreward doctor"
            )
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise UserError(f"--device {name}: there are only {torch.cuda.device_count()} GPUs (cuda:0 and up)")
    return device


def describe_device(device: torch.device) -> str:
    """The GPU's name, or the number of CPU threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
