"""Training the autoregressive model: the mean −log p of the next code."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from genreward_fast.rewards.fitting import FitConfig, FitResult
from genreward_fast.rewards.frame_model.config import ViperConfig
from genreward_fast.rewards.frame_model.expert_frames import ExpertFrames
from genreward_fast.rewards.frame_model.fit import FrameModel, fit_frame_model
from genreward_fast.rewards.viper.network import FRAMES, build_network, code_log_likelihood
from genreward_fast.rewards.viper.scores import Likelihood

SCORED = 256
"""Windows, at most, that mean and deviation are measured on."""

Rows = tuple[Tensor, Tensor]
"""(M, FRAMES) rows of windows, and which of them are within their clip."""


def fit_viper(config: FitConfig) -> FitResult:
    """See `fit_frame_model`."""
    return fit_frame_model(config, FrameModel(build=build_network, rows=_rows, loss=_loss, scores=_scores))


def _rows(expert: ExpertFrames) -> Rows:
    return expert.windows(FRAMES)


def _loss(network: GPT2LMHeadModel, codes: Tensor, rows: Rows, batch_size: int) -> Tensor:
    drawn = torch.randint(len(rows[0]), (batch_size,))
    row, valid = (part[drawn].to(codes.device) for part in rows)
    nats = -code_log_likelihood(network, codes[row], FRAMES).mean(-1)
    return (nats * valid).sum() / valid.sum()


def _scores(network: GPT2LMHeadModel, codes: Tensor, rows: Rows) -> Tensor:
    """Of frames with as much past as most have when an agent is rated."""
    chosen = torch.linspace(0, len(rows[0]) - 1, min(len(rows[0]), SCORED)).round().long()
    row, valid = (part[chosen].to(codes.device) for part in rows)
    stride = ViperConfig().stride
    late, counted = Likelihood(network)(codes[row], stride), valid[:, -stride:]
    return late[counted] if counted.any() else Likelihood(network)(codes[row], FRAMES)[valid]
