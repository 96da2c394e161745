"""What rewards that never learn have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from genreward_fast.rewards.base import inline, total
from genreward_fast.rewards.config import Credit
from genreward_fast.rewards.identity import check_identity
from genreward_fast.types import Batch, FrameSpec, Window


class FixedReward:
    """A reward with fixed weights; a subclass has `parts`, and `features` if it looks at single frames.

    Attributes:
        frames, learn_steps, frozen: see `RewardModel`.
        encoding: see `EncodesWindows`.
        credit: which rows are paid; see `RewardConfig`.
        device: where everything is computed. Windows and frames may come from any.
        note: what every output made with it must say about its weights; "" if they are trained.
    """

    learn_steps = 0
    frozen = True

    def __init__(
        self,
        frames: FrameSpec,
        identity: dict[str, Any],
        credit: Credit,
        device: torch.device | str,
        note: str = "",
    ) -> None:
        """
        Args:
            identity: what it is a reward for; a state that differs in it is refused. JSON values.
        """
        self.frames = frames
        self.credit: Credit = credit
        self.device = torch.device(device)
        self.note = note
        self.encoding: Callable[..., AbstractContextManager[None]] = inline
        self._identity = identity

    def features(self, frames: Tensor) -> Tensor:
        """(N, S, S, 3) to (N, 0): it looks at no single frames."""
        return torch.zeros(frames.shape[0], 0, device=self.device)

    def parts(self, window: Window) -> dict[str, Tensor]:
        raise NotImplementedError

    def score(self, window: Window) -> Tensor:
        """(B, T) float32: the sum of `parts` that count."""
        return total(self.parts(window))

    def update(self, batch: Batch) -> dict[str, Tensor]:
        return {}

    def freeze(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"identity": dict(self._identity)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Raises:
            UserError: the state belongs to another reward, or to one with another goal, other weights or settings.
        """
        check_identity(state.get("identity", {}), self._identity)
