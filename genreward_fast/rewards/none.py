"""No generated reward: the environment's own alone. What every other reward is compared with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from genreward_fast.errors import UserError
from genreward_fast.types import Batch, FrameSpec, Window


class NoReward:
    """A reward that looks at nothing, learns nothing and adds nothing."""

    def __init__(self) -> None:
        self.frames = FrameSpec()
        self.learn_steps = 0
        self.frozen = True

    def features(self, frames: Tensor) -> Tensor:
        """(N, S, S, 3) to (N, 0)."""
        return torch.zeros(frames.shape[0], 0, device=frames.device)

    def score(self, window: Window) -> Tensor:
        return torch.zeros(window.shape, device=window.action.device)

    def parts(self, window: Window) -> dict[str, Tensor]:
        """{"none": zeros (B, T)}: the sum of its parts is defined, and 0."""
        return {"none": self.score(window)}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        return {}

    def freeze(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"identity": {"reward": "none"}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Raises:
            UserError: the state belongs to another reward.
        """
        other = state.get("identity", {}).get("reward")
        if other != "none":
            raise UserError(f"the checkpoint's reward is {other}, this run's is none; resume with --reward {other}")
