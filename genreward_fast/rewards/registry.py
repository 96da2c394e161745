"""The rewards by name. A new one is one file beside this one, and one line in `REWARDS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from genreward_fast.errors import UserError
from genreward_fast.rewards.base import RewardModel
from genreward_fast.rewards.config import RewardConfig
from genreward_fast.rewards.genreward import GenReward
from genreward_fast.rewards.none import NoReward

if TYPE_CHECKING:  # their libraries take seconds to import
    from genreward_fast.encoders.presets import Encoders
    from genreward_fast.goals.goal import Goal

Builder = Callable[["RewardConfig", "Goal | None", "Encoders | None", int, "torch.device | str", int], RewardModel]


def _genreward(
    config: RewardConfig,
    goal: Goal | None,
    encoders: Encoders | None,
    action_size: int,
    device: torch.device | str,
    seed: int,
) -> RewardModel:
    if goal is None:
        raise UserError("--reward genreward needs a goal: name its folder with --goal (genreward goal makes one)")
    if encoders is None:
        raise ValueError("genreward needs encoders")
    return GenReward(
        goal,
        config=config,
        video_encoder=encoders.video if config.use_video else None,
        image_encoder=encoders.image if config.use_fb else None,
        action_size=action_size,
        device=device,
        seed=seed,
    )


def _diffusion_reward(
    config: RewardConfig, goal: object, encoders: object, action_size: int, device: torch.device | str, seed: int
) -> RewardModel:
    from genreward_fast.rewards.diffusion_reward.reward import diffusion_reward

    return diffusion_reward(config, device, seed)


def _viper(
    config: RewardConfig, goal: object, encoders: object, action_size: int, device: torch.device | str, seed: int
) -> RewardModel:
    from genreward_fast.rewards.viper.reward import viper

    return viper(config, device, seed)


def _roboclip(
    config: RewardConfig,
    goal: Goal | None,
    encoders: Encoders | None,
    action_size: int,
    device: torch.device | str,
    seed: int,
) -> RewardModel:
    from genreward_fast.rewards.roboclip import make_roboclip

    return make_roboclip(config, goal, encoders, device)


def _tadpole(
    config: RewardConfig,
    goal: Goal | None,
    encoders: Encoders | None,
    action_size: int,
    device: torch.device | str,
    seed: int,
) -> RewardModel:
    from genreward_fast.rewards.tadpole.build import make_tadpole

    return make_tadpole(config, goal, encoders, device, seed)


REWARDS: dict[str, Builder] = {
    "diffusion-reward": _diffusion_reward,
    "genreward": _genreward,
    "none": lambda *_: NoReward(),
    "roboclip": _roboclip,
    "tadpole": _tadpole,
    "video-tadpole": _tadpole,
    "viper": _viper,
}


def make_reward(
    config: RewardConfig,
    goal: Goal | None,
    encoders: Encoders | None,
    action_size: int,
    device: torch.device | str,
    seed: int = 0,
) -> RewardModel:
    """The reward that `config.name` names. Only the encoders that it needs are loaded.

    Raises:
        UserError: there is no reward of that name, or it needs a goal or weights and none are given.
    """
    if config.name not in REWARDS:
        raise UserError(f"--reward {config.name}: unknown; use one of {', '.join(sorted(REWARDS))}")
    return REWARDS[config.name](config, goal, encoders, action_size, device, seed)
