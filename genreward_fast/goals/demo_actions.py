"""The file of a demonstration's actions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from genreward_fast.errors import UserError
from genreward_fast.files import atomic_path


def write_actions(path: Path, actions: np.ndarray) -> None:
    """Writes (T, A) float32 actions as safetensors, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(save({"action": torch.from_numpy(np.ascontiguousarray(actions, np.float32))}))


def read_actions(path: Path) -> Tensor:
    """(T, A) float32 in [-1, 1].

    Raises:
        UserError: the file is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file of actions; make it again with genreward demos --resume")
    try:
        actions = load_file(path)["action"]
    except (SafetensorError, KeyError, OSError) as error:
        raise UserError(
            f"{path}: damaged ({type(error).__name__}); delete it and run genreward demos --resume"
        ) from None
    if actions.ndim != 2 or actions.dtype != torch.float32 or not bool((actions.abs() <= 1).all()):
        raise UserError(f"{path}: does not hold (T, A) float32 actions in [-1, 1]; delete it and collect it again")
    return actions
