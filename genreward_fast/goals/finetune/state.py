"""A run's state: gathered from all processes, written to one file, read without unpickling objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from genreward_fast.errors import UserError
from genreward_fast.files import atomic_path

FORMAT = 1
NAME = "checkpoint.pt"
_GATHERED = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
_SCATTERED = StateDictOptions(full_state_dict=True, strict=False)


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are not frozen."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def gathered_weights(model: nn.Module, ema: EMAModel | None) -> dict[str, torch.Tensor]:
    """The trained weights on the CPU, or their moving averages; whole on the first process however they are split up.

    Every process must call it.
    """
    if ema is None:
        return _copied(get_model_state_dict(model, options=_GATHERED))
    parameters = trained(model)
    ema.store(parameters)
    ema.copy_to(parameters)
    weights = _copied(get_model_state_dict(model, options=_GATHERED))
    ema.restore(parameters)
    return weights


def gather(model: nn.Module, optimizer: torch.optim.Optimizer, ema: EMAModel | None) -> dict[str, Any]:
    """All that the updates change. Every process must call it."""
    return {
        "model": gathered_weights(model, None),
        "ema": None if ema is None else gathered_weights(model, ema),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=_GATHERED),
    }


def scatter(state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, ema: EMAModel | None) -> None:
    """Puts what `gather` gave back. Every process must call it, with the whole state."""
    if ema is not None:
        set_model_state_dict(model, state["ema"], options=_SCATTERED)
        ema.shadow_params = [parameter.detach().clone() for parameter in trained(model)]
        ema.optimization_step = state["step"]
    set_model_state_dict(model, state["model"], options=_SCATTERED)
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=_SCATTERED)


def save(folder: Path, state: dict[str, Any]) -> None:
    """Writes `folder/checkpoint.pt` whole or not at all."""
    with atomic_path(folder / NAME) as temporary:
        torch.save({"format": FORMAT, **state}, temporary)


def load(folder: Path) -> dict[str, Any]:
    """Reads `folder/checkpoint.pt`.

    Raises:
        UserError: missing, damaged, or of another version.
    """
    path = folder / NAME
    if not path.is_file():
        raise UserError(f"{path}: no checkpoint to resume from; leave --resume out to start anew")
    try:
        # Mapped, the processes of a machine share one copy of it.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for damaged files
        raise UserError(f"{path}: damaged ({type(error).__name__}); restore it from a copy or start anew") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of this version (format {FORMAT})")
    return state


def _copied(weights: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Without the copy, what is gathered on a CPU would be the weights themselves, which go on changing."""
    return {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
