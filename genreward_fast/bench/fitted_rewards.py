"""The rewards with a model of expert frames, as they are timed beside ours: with initial weights, which are as fast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from genreward_fast.rewards.config import RewardConfig
from genreward_fast.rewards.diffusion_reward import network as next_frame
from genreward_fast.rewards.diffusion_reward.scores import Entropy
from genreward_fast.rewards.frame_model.codec import SIZE, build_codec
from genreward_fast.rewards.frame_model.reward import FrameModelReward, Score
from genreward_fast.rewards.viper import network as autoregressive
from genreward_fast.rewards.viper.scores import Likelihood
from genreward_fast.types import Window

ACTIONS = 4


def fitted_rewards(preset: str, device: torch.device) -> dict[str, FrameModelReward]:
    """Name -> reward of the preset's sizes, with its default settings."""
    diffusion, viper = RewardConfig().diffusion, RewardConfig().viper

    def reward(name: str, score: Score, window: int, interval: int, exploration: float) -> FrameModelReward:
        return FrameModelReward(
            name,
            codec,
            score,
            window=window,
            interval=interval,
            mean=0.0,
            deviation=1.0,
            weight=1.0,
            exploration=exploration,
            credit="spread",
            bonus_lr=1e-4,
            identity={},
            device=device,
        )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        codec = build_codec(preset)
        entropy = next_frame.build_network(codec, preset).to(device)
        likelihood: Any = autoregressive.build_network(codec, preset)
        likelihood.to(device)
    scores = Entropy(entropy, skip=diffusion.skip, noise_scale=diffusion.noise_scale)
    return {
        "diffusion-reward": reward(
            "diffusion-reward", scores, diffusion.window, diffusion.interval, diffusion.exploration
        ),
        "viper": reward("viper", Likelihood(likelihood), viper.window, viper.stride, viper.exploration),
    }


def calls_of(reward: FrameModelReward, count: int) -> dict[tuple[str, str], Callable[[], Any]]:
    """(unit, part) -> what a reward does for `count` environments; a window pays as many rows as its part says."""
    spec, generator = reward.frames, torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (count, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    codes = torch.randint(reward.codec.vocabulary, (count, spec.window, spec.feature_dim), generator=generator)
    window = Window(
        clip=None,
        features=codes.float().to(reward.device),
        action=torch.zeros(count, spec.window, ACTIONS, device=reward.device),
        env_reward=torch.zeros(count, spec.window, device=reward.device),
        fresh=spec.interval,
    )
    return {
        ("step", "all"): lambda: reward.features(frames),
        ("window", f"{spec.interval} rows"): lambda: reward.score(window),
    }
