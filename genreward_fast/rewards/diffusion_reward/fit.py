"""Training the network of next frames: VQ-Diffusion's objective (arXiv 2111.14822, section 4)."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from genreward_fast.rewards.diffusion_reward.bound import Predict, Schedule, log_one_hot
from genreward_fast.rewards.diffusion_reward.network import PAST_FRAMES, NextFrameNetwork, build_network
from genreward_fast.rewards.diffusion_reward.scores import Entropy
from genreward_fast.rewards.fitting import FitConfig, FitResult
from genreward_fast.rewards.frame_model.config import DiffusionRewardConfig
from genreward_fast.rewards.frame_model.expert_frames import ExpertFrames
from genreward_fast.rewards.frame_model.fit import FrameModel, fit_frame_model

AUXILIARY = 1e-3
"""Weight of the loss that asks for x_0 itself; up to twice as much at early timesteps."""
TIMESTEPS_AT_ONCE = 8
"""Parts of a batch, each with a timestep of its own."""
SCORED = 2048
"""Expert frames, at most, that mean and deviation are measured on."""


def fit_diffusion_reward(config: FitConfig) -> FitResult:
    """See `fit_frame_model`."""
    return fit_frame_model(config, FrameModel(build=build_network, rows=_rows, loss=_loss, scores=_scores))


def noised(codes: Tensor, schedule: Schedule, timestep: int) -> Tensor:
    """A draw from q(x_t | x_0): (B, L) codes, each kept, masked, or replaced by any code, alike."""
    keep, mask = (table[timestep].exp() for table in (schedule.log_cumprod_at, schedule.log_cumprod_ct))
    chance = torch.rand(codes.shape, device=codes.device)
    replaced = torch.randint_like(codes, schedule.num_embed - 1)
    return torch.where(chance < keep, codes, torch.where(chance < keep + mask, schedule.mask_class, replaced))


def denoising_loss(predict: Predict, schedule: Schedule, codes: Tensor, timestep: int) -> Tensor:
    """Nats per code: KL(q(x_{t-1} | x_t, x_0) ‖ p(x_{t-1} | x_t)), or −log p(x_0 | x_1) at the first timestep.

    Added is the auxiliary −log p(x_0 | x_t), weighted with λ (2 − t/T).

    Args:
        codes: (B, L) int64, x_0.
        timestep: from 0.
    """
    seen = noised(codes, schedule, timestep)
    log_x0 = predict(seen, timestep)
    direct = -log_x0.gather(1, codes.unsqueeze(1)).mean()
    if timestep == 0:
        return (1 + 2 * AUXILIARY) * direct
    log_true = schedule.q_posterior(log_one_hot(codes, schedule), seen, timestep)
    log_p = schedule.q_posterior(log_x0, seen, timestep)
    divergence = (log_true.exp() * (log_true - log_p)).sum(1).mean()
    return divergence + AUXILIARY * (2 - timestep / len(schedule.log_at)) * direct


def _rows(expert: ExpertFrames) -> Tensor:
    """(F, 3): two past frames and the one to predict; a clip's first frame predicts itself."""
    return expert.leading_to(PAST_FRAMES + 1)


def _loss(network: NextFrameNetwork, codes: Tensor, rows: Tensor, batch_size: int) -> Tensor:
    schedule = network.noise_schedule()
    batch = codes[rows[torch.randint(len(rows), (batch_size,))].to(codes.device)]
    losses = []
    for part in batch.chunk(TIMESTEPS_AT_ONCE):
        predict = functools.partial(network.predict, part[:, :-1])
        loss = denoising_loss(predict, schedule, part[:, -1], int(torch.randint(len(schedule.log_at), ())))
        losses.append(loss * len(part) / len(batch))
    return torch.stack(losses).sum()


def _scores(network: NextFrameNetwork, codes: Tensor, rows: Tensor) -> Tensor:
    """Of expert frames as the present ones, whose successors are sampled."""
    chosen = torch.linspace(0, len(rows) - 1, min(len(rows), SCORED)).round().long()
    defaults = DiffusionRewardConfig()
    entropy = Entropy(network, skip=defaults.skip, noise_scale=defaults.noise_scale)
    return entropy.of_pasts(codes[rows[chosen, 1:].to(codes.device)])
