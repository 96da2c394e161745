"""Diffusion Reward out of a folder that `genreward fit diffusion-reward` wrote."""

from __future__ import annotations

import torch

from genreward_fast.encoders.fingerprint import fingerprint
from genreward_fast.rewards.config import RewardConfig
from genreward_fast.rewards.diffusion_reward.network import read_network
from genreward_fast.rewards.diffusion_reward.scores import Entropy
from genreward_fast.rewards.frame_model.codec import read_codec
from genreward_fast.rewards.frame_model.folder import CODEC, MODEL, OPTION, fitted_folder
from genreward_fast.rewards.frame_model.reward import FrameModelReward

NAME = "diffusion-reward"


def diffusion_reward(config: RewardConfig, device: torch.device | str, seed: int = 0) -> FrameModelReward:
    """r = (1 − α)·(x − μ)/σ + α·RND of each row, with x minus the entropy of the frame that follows (arXiv 2312.14134).

    Raises:
        UserError: no weights are named, or they cannot be used.
    """
    settings = config.diffusion
    folder, record = fitted_folder(config.weights, NAME)
    codec = read_codec(folder / CODEC, OPTION)
    network = read_network(folder / MODEL, OPTION).to(device).requires_grad_(False)
    return FrameModelReward(
        NAME,
        codec,
        Entropy(network, skip=settings.skip, noise_scale=settings.noise_scale),
        window=settings.window,
        interval=settings.interval,
        mean=record["mean"],
        deviation=record["deviation"],
        weight=1 - settings.exploration,
        exploration=settings.exploration,
        credit=config.credit,
        bonus_lr=settings.bonus_lr,
        identity={"model": fingerprint(network, {}), "exploration": settings.exploration},
        device=device,
        seed=seed,
    )
