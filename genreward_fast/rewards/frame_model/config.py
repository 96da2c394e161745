"""The settings of the rewards that ask a model of expert frames, checked when they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass

from genreward_fast.errors import UserError


@dataclass(frozen=True)
class DiffusionRewardConfig:
    """Diffusion Reward: r = (1 − exploration)·(x − μ)/σ + exploration·RND (arXiv 2312.14134).

    Attributes:
        exploration: α of the paper, the bonus's share; 0 for none.
        skip: denoising steps left out between two that are evaluated.
        noise_scale: of the Gumbel noise that the next frame is sampled with; 0 takes the most likely codes.
        window: rows that are scored together. Each looks back one frame, so a window begins on the row that the one
            before ended on; 16 closes windows on the last of 256 rows.
        bonus_lr: learning rate of Adam for RND's predictor.
        batch: frames in one of its updates.
    """

    exploration: float = 0.95
    skip: int = 9
    noise_scale: float = 1.0
    window: int = 16
    bonus_lr: float = 1e-4
    batch: int = 256

    def __post_init__(self) -> None:
        if not 0 <= self.exploration <= 1:
            raise UserError(f"--exploration of diffusion-reward must lie in [0, 1], not {self.exploration}")
        if self.skip < 0 or not 0 <= self.noise_scale < math.inf:
            raise UserError(f"diffusion-reward: skip {self.skip} and noise_scale {self.noise_scale} must be at least 0")
        _check_frame_model("diffusion-reward", self.window, self.bonus_lr, self.batch)

    @property
    def interval(self) -> int:
        return self.window - 1


@dataclass(frozen=True)
class ViperConfig:
    """VIPER: r = (log p(x_t | x_<t) − μ)/σ + exploration·RND (arXiv 2305.14343).

    Attributes:
        exploration: weight of the novelty bonus, which stands in for Plan2Explore; 0 for none.
        window: frames that the model is shown in one pass, the last `stride` of which are scored: each then has
            window − stride to window − 1 frames before it.
        stride: rows from one window's end to the next one's.
        bonus_lr: learning rate of Adam for RND's predictor.
        batch: frames in one of its updates.
    """

    exploration: float = 0.0
    window: int = 16
    stride: int = 8
    bonus_lr: float = 1e-4
    batch: int = 256

    def __post_init__(self) -> None:
        if not 0 <= self.exploration < math.inf:
            raise UserError(f"--exploration of viper must be a finite number >= 0, not {self.exploration}")
        _check_frame_model("viper", self.window, self.bonus_lr, self.batch)
        if not 1 <= self.stride <= self.window:
            raise UserError(f"viper's stride must lie between 1 and its window of {self.window}, not {self.stride}")


def _check_frame_model(name: str, window: int, bonus_lr: float, batch: int) -> None:
    if window < 2 or batch < 2:
        raise UserError(f"{name}: window {window} and batch {batch} must be at least 2")
    if not 0 < bonus_lr < math.inf:
        raise UserError(f"{name}: bonus_lr must be a positive number, not {bonus_lr}")
