"""The denoising objective in the checkpoint's own prediction type."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MIN_SNR_GAMMA = 5.0  # arXiv 2303.09556


def regression_target(scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the transformer is to predict: v (arXiv 2202.00512), the noise, or the latents, as the scheduler has it."""
    kind = scheduler.config.prediction_type
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    return noise if kind == "epsilon" else latents


def loss_weights(scheduler: Any, timesteps: Tensor, weighting: str) -> Tensor:
    """(B,) float32: the weight of each example's mean squared error.

    `model` weighs the prediction equally at every timestep. `min-snr` weighs the error of the latents by min(SNR, γ),
    said in the prediction's own terms (arXiv 2303.09556, section 3.4); for v it is 0 where the SNR is.
    """
    if weighting == "model":
        return torch.ones(len(timesteps), device=timesteps.device)
    alpha = scheduler.alphas_cumprod.to(timesteps.device)[timesteps].double()
    snr = alpha / (1 - alpha)
    clipped = snr.clamp(max=MIN_SNR_GAMMA)
    kind = scheduler.config.prediction_type
    if kind == "v_prediction":
        weights = clipped / (snr + 1)
    elif kind == "epsilon":
        weights = (MIN_SNR_GAMMA / snr).clamp(max=1)
    else:
        weights = clipped
    return weights.float()


def denoising_loss(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """() float32: the weighted mean over the batch of each example's mean squared error."""
    errors = (prediction.float() - target).square().flatten(1).mean(1)
    return (weights * errors).mean()
