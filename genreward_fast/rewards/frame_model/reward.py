"""The reward that a model of expert frames gives, and what it adds for new ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from genreward_fast.errors import UserError
from genreward_fast.rewards.base import WHOLE_RUN, inline, total
from genreward_fast.rewards.config import Credit
from genreward_fast.rewards.frame_model.bonus import NoveltyBonus
from genreward_fast.rewards.frame_model.codec import SIZE, FrameCodec
from genreward_fast.types import Batch, FrameSpec, Window

Score = Callable[[Tensor, int], Tensor]
"""Codes of windows (B, T, L) int64, number of fresh rows -> (B, fresh) float32."""


class FrameModelReward:
    """r = weight · (x − mean) / deviation + exploration · novelty, with x what a fitted model says of each row's frame.

    The features that are kept with the experience are the frame's codes: a frame is encoded once, for the model, for
    the bonus, and for all that the bonus learns.

    Attributes:
        name: of the reward, and of its first part.
        frames, learn_steps, frozen: see `RewardModel`. The bonus learns as long as the run goes on.
        encoding: see `EncodesWindows`; around the model.
        codec: of the frames.
    """

    def __init__(
        self,
        name: str,
        codec: FrameCodec,
        score: Score,
        *,
        window: int,
        interval: int,
        mean: float,
        deviation: float,
        weight: float,
        exploration: float,
        credit: Credit,
        bonus_lr: float,
        identity: dict[str, Any],
        device: torch.device | str,
        seed: int = 0,
    ):
        """
        Args:
            score: what the model says, on `device`.
            window, interval: rows that are scored together, and from one window's end to the next one's.
            mean, deviation: of x on expert frames.
            exploration: weight of the bonus; 0 for none.
            credit: "spread" pays each row its own; "closing" their sum on a window's last row.
            identity: what a checkpoint must have in common with this reward, besides its name and codec.
            seed: of the bonus's networks.
        """
        self.name, self.device = name, torch.device(device)
        self.codec = codec.to(self.device).eval().requires_grad_(False)
        self.frames = FrameSpec(window=window, interval=interval, feature_size=SIZE, feature_dim=codec.length)
        self.encoding: Callable[..., AbstractContextManager[None]] = inline
        self.credit: Credit = credit
        self._score, self._mean, self._deviation = score, mean, deviation
        self._weight, self._exploration = weight, exploration
        self._bonus: NoveltyBonus | None = None
        if exploration:
            self._bonus = NoveltyBonus(codec.codebook, codec.grid, lr=bonus_lr, device=self.device, seed=seed)
        self.learn_steps = WHOLE_RUN if self._bonus else 0
        self.frozen = self._bonus is None
        self._identity = {"reward": name, "codec": codec.fingerprint, **identity}

    def features(self, frames: Tensor) -> Tensor:
        """(N, 64, 64, 3) uint8 to (N, L) float32: the frame's codes, whole numbers."""
        return self.codec.encode(frames.to(self.device)).float()

    def score(self, window: Window) -> Tensor:
        """(B, T) float32: the sum of `parts`."""
        return total(self.parts(window))

    @torch.no_grad()
    def parts(self, window: Window) -> dict[str, Tensor]:
        """What each row is paid, (B, T) float32; rows that an earlier window has paid get 0.

        The reward's own name: weight · (x − mean) / deviation. "novelty": exploration · bonus, if there is one.

        The name with "_raw" is x of the fresh rows; the others repeat their mean, which so is the window's.
        "novelty_raw" likewise.
        """
        if window.features is None:
            raise ValueError(f"{self.name} needs the window's features")
        codes = _codes(window.features.to(self.device))
        with self.encoding(codes):
            raw = self._score(codes, window.fresh)
            parts = self._paid(self.name, raw, self._weight * (raw - self._mean) / self._deviation, window)
        if self._bonus is not None:
            novelty = self._bonus.score(codes[:, -window.fresh :])
            parts |= self._paid("novelty", novelty, self._exploration * novelty, window)
        return parts

    def _paid(self, name: str, raw: Tensor, values: Tensor, window: Window) -> dict[str, Tensor]:
        """(B, fresh) values on the rows that get them."""
        rows, steps = window.shape
        paid = torch.zeros(rows, steps, device=self.device)
        if self.credit == "closing":
            paid[:, -1] = values.sum(1)
        else:
            paid[:, -window.fresh :] = values
        older = raw.mean(1, keepdim=True).expand(-1, steps - window.fresh)
        return {name: paid, f"{name}_raw": torch.cat([older, raw], 1)}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the bonus's learning on the frames of pairs of rows; {} without a bonus, or once frozen."""
        if self._bonus is None or self.frozen:
            return {}
        if batch.feature is None:
            raise ValueError(f"{self.name} learns from features")
        return self._bonus.update(_codes(batch.feature[:, -1].to(self.device)))

    def freeze(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """Ends the bonus's learning; nothing is measured."""
        self.frozen = True
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Nested dicts of tensors, numbers and strings: what it is fitted to, and all of the bonus."""
        bonus = {} if self._bonus is None else dict(self._bonus.state_dict())
        return {"identity": dict(self._identity), "bonus": bonus, "frozen": self.frozen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Raises:
            UserError: the state was made with other weights, or belongs to another reward.
        """
        saved = state.get("identity", {})
        for name in self._identity | saved:
            theirs, ours = saved.get(name, "none"), self._identity.get(name, "none")
            if theirs != ours:
                raise UserError(
                    f"the checkpoint's reward has {name} {theirs}, this run's has {ours}; use what it was trained with"
                )
        try:
            if self._bonus is not None:
                self._bonus.load_state_dict(state["bonus"])
            self.frozen = state["frozen"]
        except (KeyError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"the checkpoint's reward does not fit this version: {reason}") from None


def _codes(features: Tensor) -> Tensor:
    """Codes as they are kept, float16 or float32, to int64."""
    return features.round().long()
