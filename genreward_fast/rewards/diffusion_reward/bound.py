"""How sure a discrete diffusion model is of the frame that it samples (Diffusion Reward, section 3.2).

The negative conditional entropy −H(x_0 | past) = E log p(x_0 | past) is estimated with one sample x̃_0 of the model, and
log p by its variational bound along the path x_T, ..., x_1 that led to the sample:

    log p(x̃_0 | x_1) − Σ_t KL( q(x_{t-1} | x_t, x̃_0) ‖ p(x_{t-1} | x_t) )
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.schedulers.scheduling_vq_diffusion import index_to_log_onehot
from torch import Tensor

Schedule = Any
"""diffusers' `VQDiffusionScheduler`, whose attributes the library gives to type checkers as unknown."""
Predict = Callable[[Tensor, int], Tensor]
"""Noised codes (B, L), timestep -> log p(x_0), (B, vocabulary, L)."""


def evaluation_steps(timesteps: int, skip: int) -> list[tuple[int, int]]:
    """The denoising steps that are evaluated when `skip` are left out between two: VQ-Diffusion's fast sampling.

    Returns:
        for each step the timestep that the network is told, and the one whose posterior is used: the earliest of those
        that the step stands for. 100 and 9 give 11 steps, (99, 90), (89, 80), ..., (9, 9), (0, 0).
    """
    told = list(range(timesteps - 1, -1, -1 - skip))
    told += [0] if told[-1] else []
    return [(t, t - skip if t > skip else t) for t in told]


def gumbel_noise(steps: int, vocabulary: int, length: int, scale: float, seed: int = 0) -> Tensor:
    """(steps, vocabulary + 1, length) float32, the same on every machine."""
    uniform = torch.rand(steps, vocabulary + 1, length, generator=torch.Generator().manual_seed(seed))
    return -scale * (-uniform.clamp(min=1e-30).log()).clamp(min=1e-30).log()


def log_one_hot(codes: Tensor, schedule: Schedule) -> Tensor:
    """(B, L) int64 codes to (B, vocabulary, L) float32, as the schedule takes a p(x_0) that is certain."""
    one_hot: Any = index_to_log_onehot
    return one_hot(codes, schedule.num_embed)[:, :-1]


def sampled_bound(
    predict: Predict, schedule: Schedule, steps: Sequence[tuple[int, int]], noise: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Samples a frame for each of `count` pasts, and says how sure the model was.

    Args:
        predict: knows the pasts.
        steps: as `evaluation_steps` gives them.
        noise: (steps, vocabulary + 1, L), Gumbel noise that is added to the log-probabilities before the largest is
            taken. All frames are sampled with the same, so that a frame's value does not depend on its batch.

    Returns:
        (count,) float32 in nats, and the samples, (count, L) int64.
    """
    codes = torch.full((count, noise.shape[2]), schedule.mask_class, device=noise.device)
    path: list[tuple[int, Tensor, Tensor]] = []
    for (told, posterior), gumbel in zip(steps, noise):
        log_p = predict(codes, told)
        if posterior:  # in step 0 the posterior is p(x_0) itself
            log_p = schedule.q_posterior(log_p, codes, posterior)
        path.append((posterior, codes, log_p))
        codes = (log_p + gumbel[: log_p.shape[1]]).argmax(1)
    _, _, last = path.pop()
    bound = last.gather(1, codes.unsqueeze(1)).sum((1, 2))
    log_sample = log_one_hot(codes, schedule)
    for posterior, noised, log_p in path:
        log_q = schedule.q_posterior(log_sample, noised, posterior)
        bound -= (log_q.exp() * (log_q - log_p)).sum((1, 2))
    return bound, codes
