"""The rewards by name. A new one is one file beside this one, and one line in `REWARDS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Ingredients:
    """What a reward is made of: the arguments of `make_reward`. Each takes what it needs."""

    config: RewardConfig
    goal: Goal | None
    encoders: Encoders | None
    action_size: int
    device: torch.device | str
    seed: int


Builder = Callable[[Ingredients], RewardModel]


def _genreward(given: Ingredients) -> RewardModel:
    if given.goal is None:
        raise UserError("--reward genreward needs a goal: name its folder with --goal (genreward goal makes one)")
    if given.encoders is None:
        raise ValueError("genreward needs encoders")
    return GenReward(
        given.goal,
        config=given.config,
        video_encoder=given.encoders.video if given.config.use_video else None,
        image_encoder=given.encoders.image if given.config.use_fb else None,
        action_size=given.action_size,
        device=given.device,
        seed=given.seed,
    )


def _diffusion_reward(given: Ingredients) -> RewardModel:
    from genreward_fast.rewards.diffusion_reward.reward import diffusion_reward

    return diffusion_reward(given.config, given.device, given.seed)


def _viper(given: Ingredients) -> RewardModel:
    from genreward_fast.rewards.viper.reward import viper

    return viper(given.config, given.device, given.seed)


def _roboclip(given: Ingredients) -> RewardModel:
    from genreward_fast.rewards.roboclip import make_roboclip

    return make_roboclip(given.config, given.goal, given.encoders, given.device)


def _tadpole(given: Ingredients) -> RewardModel:
    from genreward_fast.rewards.tadpole.build import make_tadpole

    return make_tadpole(given.config, given.goal, given.encoders, given.device, given.seed)


REWARDS: dict[str, Builder] = {
    "diffusion-reward": _diffusion_reward,
    "genreward": _genreward,
    "none": lambda _: NoReward(),
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
    return REWARDS[config.name](Ingredients(config, goal, encoders, action_size, device, seed))
