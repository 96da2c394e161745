"""What a reward is a reward for, so that a checkpoint of another one is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from genreward_fast.errors import UserError


def check_identity(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """
    Raises:
        UserError: the two differ; names the first thing that does, and both its values.
    """
    for name in {**ours, **saved}:
        theirs, mine = saved.get(name, "none"), ours.get(name, "none")
        if theirs != mine:
            raise UserError(
                f"the checkpoint's reward has {name} {theirs}, this run's has {mine}; use what it was trained with"
            )


def frames_digest(frames: Tensor) -> str:
    """The first 16 hex digits of the SHA-256 of uint8 frames."""
    return hashlib.sha256(frames.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
