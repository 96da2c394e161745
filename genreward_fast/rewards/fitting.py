"""The rewards that are fitted to demonstrations before they can be used: `genreward fit NAME`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from genreward_fast.errors import UserError

PRESETS = ("paper", "tiny")


@dataclass(frozen=True)
class FitConfig:
    """What to fit, to what, and how.

    Attributes:
        reward: one of `FITTERS`.
        data: folder of demonstrations, of any kind that `goals/demos.py` reads.
        out: folder of the result.
        steps: updates of each network that is fitted, at most.
        minutes: each network's training ends after this time at the latest, counted anew when it is resumed.
        batch_size: examples in an update.
        lr: learning rate of AdamW.
        seed: of the weights, and of everything that is drawn.
        device: where it is computed.
        resume: go on from the checkpoint in `out`.
        preset: "paper" for networks of the published sizes, "tiny" for small ones.
    """

    reward: str
    data: Path
    out: Path
    steps: int = 20_000
    minutes: float = math.inf
    batch_size: int = 32
    lr: float = 3e-4
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    resume: bool = False
    preset: str = "paper"

    def __post_init__(self) -> None:
        """
        Raises:
            UserError: there is no such reward or preset, or a number is out of its range.
        """
        if self.reward not in FITTERS:
            raise UserError(f"{self.reward}: is no reward that is fitted; use one of {', '.join(sorted(FITTERS))}")
        if self.preset not in PRESETS:
            raise UserError(f"--preset {self.preset}: unknown; use one of {', '.join(PRESETS)}")
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        if not self.minutes > 0:
            raise UserError(f"--minutes must be a positive number, not {self.minutes}")
        if not 0 < self.lr < math.inf:
            raise UserError(f"--lr must be a positive number, not {self.lr}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed must lie between 0 and 2^63 - 1, but is {self.seed}")


@dataclass(frozen=True)
class FitResult:
    """What was fitted.

    Attributes:
        folder: what `--reward-weights` takes.
        record: data, settings and losses, as they are in the folder.
        lines: what to tell the user.
    """

    folder: Path
    record: dict[str, Any]
    lines: list[str]


def _diffusion_reward(config: FitConfig) -> FitResult:
    from genreward_fast.rewards.diffusion_reward.fit import fit_diffusion_reward

    return fit_diffusion_reward(config)


def _viper(config: FitConfig) -> FitResult:
    from genreward_fast.rewards.viper.fit import fit_viper

    return fit_viper(config)


def _tadpole(config: FitConfig) -> FitResult:
    from genreward_fast.rewards.tadpole.fit import fit_tadpole

    return fit_tadpole(config)


FITTERS: dict[str, Callable[[FitConfig], FitResult]] = {
    "diffusion-reward": _diffusion_reward,
    "tadpole": _tadpole,
    "viper": _viper,
}


def fit(config: FitConfig) -> FitResult:
    """
    Raises:
        UserError: bad input.
        Interrupted: after a signal; a checkpoint was written.
        TrainingDiverged: a loss is not finite; the last checkpoint is intact.
    """
    return FITTERS[config.reward](config)
