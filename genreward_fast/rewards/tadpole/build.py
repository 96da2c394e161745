"""TADPoLe from a run's settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from genreward_fast.errors import UserError
from genreward_fast.rewards.config import RewardConfig
from genreward_fast.rewards.tadpole.reward import Tadpole, VideoTadpole

if TYPE_CHECKING:  # their libraries take seconds to import
    from genreward_fast.encoders.presets import Encoders
    from genreward_fast.goals.goal import Goal
    from genreward_fast.rewards.tadpole.model import TextDiffusion

NEGATIVE = "bad quality, worse quality"
"""What Video-TADPoLe's published code compares the text with; TADPoLe's takes the empty text."""


def make_tadpole(
    config: RewardConfig, goal: Goal | None, encoders: Encoders | None, device: torch.device | str, seed: int
) -> Tadpole | VideoTadpole:
    """The one that `config.name` names, for the goal's text: with the weights that the settings name, or with random
    ones if the run's encoders have such, too.

    Raises:
        UserError: there is no goal, or no usable weights.
    """
    if goal is None:
        raise UserError(f"--reward {config.name} needs a goal for its text: name its folder with --goal")
    device = torch.device(device)
    # As published; bfloat16's eight bits are too few for differences of squares.
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    kind = VideoTadpole if config.name == "video-tadpole" else Tadpole
    return kind(
        _model(config, goal.text, encoders, dtype).to(device), goal.text, config=config, seed=seed, device=device
    )


def _model(config: RewardConfig, text: str, encoders: Encoders | None, dtype: torch.dtype) -> TextDiffusion:
    from genreward_fast.encoders.presets import RANDOM
    from genreward_fast.rewards.tadpole.architectures import random_model
    from genreward_fast.rewards.tadpole.weights import read_clip_model, read_picture_model

    clips = config.name == "video-tadpole"
    if config.weights and clips:
        return read_clip_model(config.weights, config.tadpole.motion_adapter, text, NEGATIVE, dtype)
    if config.weights:
        return read_picture_model(config.weights, text, dtype)
    if encoders is not None and encoders.config.weights == "random":
        return random_model(encoders.config.preset, clips, encoders.config.weights_seed, dtype, RANDOM)
    if clips:
        raise UserError(
            "--reward video-tadpole needs a model of clips: name with --reward-weights a folder or hub id of "
            "AnimateDiff, or of Stable Diffusion 1.5 together with --motion-adapter "
            "guoyww/animatediff-motion-adapter-v1-5-2"
        )
    raise UserError(
        "--reward tadpole needs a text-to-image model: name with --reward-weights a folder or hub id of Stable "
        "Diffusion 2.1, or fit a small one to demonstrations with genreward fit tadpole"
    )
