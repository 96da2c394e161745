"""VIPER out of a folder that `genreward fit viper` wrote."""

from __future__ import annotations

from typing import Any

import torch

from genreward_fast.encoders.fingerprint import fingerprint
from genreward_fast.errors import UserError
from genreward_fast.rewards.config import RewardConfig
from genreward_fast.rewards.frame_model.codec import read_codec
from genreward_fast.rewards.frame_model.folder import CODEC, MODEL, OPTION, fitted_folder
from genreward_fast.rewards.frame_model.reward import FrameModelReward
from genreward_fast.rewards.viper.network import read_network
from genreward_fast.rewards.viper.scores import Likelihood

NAME = "viper"


def viper(config: RewardConfig, device: torch.device | str, seed: int = 0) -> FrameModelReward:
    """r = (log p(x_t | x_<t) − μ)/σ of each row, plus the novelty bonus if one is asked for (arXiv 2305.14343).

    Raises:
        UserError: no weights are named, they cannot be used, or a window is longer than their context.
    """
    settings = config.viper
    folder, record = fitted_folder(config.weights, NAME)
    codec = read_codec(folder / CODEC, OPTION)
    network: Any = read_network(folder / MODEL, OPTION).requires_grad_(False)
    network.to(device)
    context = network.config.n_positions // codec.length
    if settings.window > context:
        raise UserError(f"{folder}: its model has a context of {context} frames, but windows have {settings.window}")
    return FrameModelReward(
        NAME,
        codec,
        Likelihood(network),
        window=settings.window,
        interval=settings.stride,
        mean=record["mean"],
        deviation=record["deviation"],
        weight=1.0,
        exploration=settings.exploration,
        credit=config.credit,
        bonus_lr=settings.bonus_lr,
        identity={"model": fingerprint(network, {}), "exploration": settings.exploration},
        device=device,
        seed=seed,
    )
