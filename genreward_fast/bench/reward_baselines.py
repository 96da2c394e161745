"""Latency of the rewards of other papers, with random weights of the published sizes (preset paper) or small ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from genreward_fast.bench.reward_subjects import ACTIONS, Subjects
from genreward_fast.encoders.presets import EncoderConfig, Encoders
from genreward_fast.rewards.base import RewardModel, total
from genreward_fast.rewards.config import RewardConfig
from genreward_fast.rewards.registry import make_reward
from genreward_fast.types import Window

BASELINES = ("roboclip", "tadpole", "video-tadpole")


def baseline(name: str, subjects: Subjects) -> RewardModel:
    """The reward of that name for the subjects' goal, of their preset and on their device."""
    encoders = EncoderConfig(preset=subjects.encoder_config.preset, weights="random")
    config = RewardConfig(name=name)
    return make_reward(config, subjects.goal, Encoders(encoders, subjects.device), ACTIONS, subjects.device)


def baseline_calls(reward: RewardModel, subjects: Subjects, count: int) -> dict[tuple[str, str], Callable[[], Any]]:
    """(unit, part) -> what the reward does for `count` environments: on each step if it looks at single frames, and
    at a window's end.
    """
    spec, device = reward.frames, subjects.device
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    clip = features = None
    if spec.feature_size:
        frames = subjects.noise(count, spec.feature_size).to(device)
        features = torch.zeros(count, spec.window, spec.feature_dim, device=device)
        calls["step", "all"] = lambda: reward.features(frames)
    if spec.clip_size:
        clip = subjects.noise(count, len(spec.clip_steps), spec.clip_size).to(device)
    window = Window(
        clip=clip,
        features=features,
        action=torch.zeros(count, spec.window, ACTIONS, device=device),
        env_reward=torch.zeros(count, spec.window, device=device),
        fresh=spec.window,
    )
    calls["window", "all"] = lambda: total(reward.parts(window))
    return calls
