import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler

from genreward_fast.goals.finetune.objective import MIN_SNR_GAMMA, denoising_loss, loss_weights, regression_target
from genreward_fast.goals.video_model_configs import SCHEDULER


def make(kind="v_prediction", scheduler=CogVideoXDDIMScheduler):
    return scheduler(**(SCHEDULER | {"prediction_type": kind}))


@pytest.mark.parametrize("scheduler", [CogVideoXDDIMScheduler, CogVideoXDPMScheduler])
def test_equal_weights_of_v_are_the_original_weights_of_the_latents(scheduler, fresh_generator):
    """CogVideoX's own training weighs the error of the latents by 1 / (1 - ᾱ)."""
    schedule = make(scheduler=scheduler)
    timesteps = torch.tensor([3, 250, 600, 999])
    latents, noise, prediction = (torch.randn(4, 3, 5, 2, 2, generator=fresh_generator) for _ in range(3))
    noisy = schedule.add_noise(latents, noise, timesteps)
    alpha = schedule.alphas_cumprod[timesteps].float().view(-1, 1, 1, 1, 1)
    denoised = alpha.sqrt() * noisy - (1 - alpha).sqrt() * prediction
    expected = ((denoised - latents).square() / (1 - alpha)).mean()
    target = regression_target(schedule, latents, noise, timesteps)
    ours = denoising_loss(prediction, target, loss_weights(schedule, timesteps, "model"))
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon", "sample"])
def test_min_snr_weighs_the_error_of_the_latents(kind, fresh_generator):
    """min(SNR, γ) times the squared error of the latents, whatever is predicted."""
    schedule = make(kind)
    timesteps = torch.tensor([30, 250, 500, 800])
    latents, noise = (torch.randn(4, 3, 5, 2, 2, generator=fresh_generator).double() for _ in range(2))
    alpha = schedule.alphas_cumprod[timesteps].double().view(-1, 1, 1, 1, 1)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    target = regression_target(schedule, latents, noise, timesteps)
    prediction = target + torch.randn(target.shape, generator=fresh_generator)
    denoised = {
        "v_prediction": alpha.sqrt() * noisy - (1 - alpha).sqrt() * prediction,
        "epsilon": (noisy - (1 - alpha).sqrt() * prediction) / alpha.sqrt(),
        "sample": prediction,
    }[kind]
    snr = alpha / (1 - alpha)
    expected = (snr.clamp(max=MIN_SNR_GAMMA) * (denoised - latents).square()).mean()
    ours = denoising_loss(prediction, target.float(), loss_weights(schedule, timesteps, "min-snr"))
    torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("kind", "weight"), [("v_prediction", 0.0), ("epsilon", 1.0), ("sample", 0.0)])
def test_min_snr_where_nothing_but_noise_is_left(kind, weight):
    assert loss_weights(make(kind), torch.tensor([999]), "min-snr").item() == pytest.approx(weight, abs=1e-6)
