"""The tiny video autoencoder: clips of Meta-World to latents and back."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor

from genreward_fast.encoders.architectures import build_vae
from genreward_fast.encoders.video import read_vae
from genreward_fast.goals.assets.loop import LoopConfig, Trained, train
from genreward_fast.goals.assets.plan import BuildFolder
from genreward_fast.goals.assets.recordings import Episode, Recordings
from genreward_fast.goals.assets.saving import autocast, saved_folder

STEPS = 12_000
BATCH = 16
LENGTHS = (16, 16, 16, 9)
"""Frames of a step's clips, in turn: windows have 4n, generated videos 4n + 1."""
_MOVING = 16 / 255
_KL_WEIGHT = 3e-4
_EDGE_WEIGHT = 0.5
_MOVING_WEIGHT = 6.0
_FIRST_LOGVAR = -6.0  # with the noise of 0, the decoder sees next to nothing of the clip for hundreds of steps


def draw_clips(
    recordings: Recordings, episodes: tuple[Episode, ...], batch: int, length: int, generator: torch.Generator
) -> Tensor:
    """(batch, length, S, S, 3) uint8 of the largest size: evenly spaced frames of random parts of random episodes."""
    device = recordings.device
    table = torch.tensor([(episode.start, episode.length) for episode in episodes], device=device)
    start, frames = table[torch.randint(len(table), (batch,), generator=generator, device=device)].unbind(1)
    share, place = torch.rand(2, batch, generator=generator, device=device)
    span = (0.25 + 0.75 * share) * (frames - 1)
    first = place * (frames - 1 - span)
    offsets = first[:, None] + span[:, None] * torch.linspace(0, 1, length, device=device)
    return recordings.frames[max(recordings.frames)][start[:, None] + offsets.round().long()]


def moving(clips: Tensor) -> Tensor:
    """(B, 3, T, H, W) in [-1, 1] to (B, 1, T, H, W) bool: pixels that are not what they are on average in the clip."""
    return (clips - clips.mean(2, keepdim=True)).abs().amax(1, keepdim=True) > 2 * _MOVING


def vae_losses(vae: AutoencoderKLCogVideoX, clips: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """L1 of pixels and of their differences in space, moving ones weighted, and a small KL (arXiv 1312.6114).

    Args:
        clips: (B, 3, T, H, W) float32 in [-1, 1].
        noise: unit normal, of the latent's shape.
    """
    with autocast(clips.device):
        model: Any = vae
        posterior = model.encode(clips).latent_dist
        decoded = model.decode(posterior.mean + posterior.std * noise).sample.float()
    weight = 1 + _MOVING_WEIGHT * moving(clips)
    weight = weight / weight.mean()
    difference = decoded - clips
    pixels = (weight * difference.abs()).mean()
    edges = (weight[..., 1:] * difference.diff(dim=-1).abs()).mean()
    edges = edges + (weight[..., 1:, :] * difference.diff(dim=-2).abs()).mean()
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    loss = pixels + _EDGE_WEIGHT * edges + _KL_WEIGHT * kl
    return {"loss": loss, "pixels": pixels, "edges": edges, "kl": kl}


def to_pixels(clips: Tensor) -> Tensor:
    """(B, T, H, W, 3) uint8 to (B, 3, T, H, W) float32 in [-1, 1]."""
    return clips.permute(0, 4, 1, 2, 3).float().div(127.5).sub(1).contiguous()


def train_vae(
    recordings: Recordings, folder: BuildFolder, config: LoopConfig, *, batch: int = BATCH, resume: bool = False
) -> Trained:
    """Trains it, and saves it as float16 with the scale that gives its latents unit deviation."""
    device = recordings.device
    vae: Any = build_vae("tiny", config.seed)  # to type checkers the library's classes have no attributes
    vae = vae.to(device)
    episodes = recordings.chosen(lambda episode: not episode.held_out)
    channels = vae.config["latent_channels"]
    with torch.no_grad():
        vae.encoder.conv_out.conv.bias[channels:] = _FIRST_LOGVAR
    ratio = 2 ** (len(vae.config["block_out_channels"]) - 1)

    def losses(generator: torch.Generator, _done: float) -> dict[str, Tensor]:
        # The turn is drawn, too: a resumed run has no count of its own.
        pick = int(torch.randint(len(LENGTHS), (), generator=torch.Generator().manual_seed(generator.initial_seed())))
        clips = to_pixels(draw_clips(recordings, episodes, batch, LENGTHS[pick], generator))
        shape = (batch, channels, -(-LENGTHS[pick] // 4), clips.shape[-2] // ratio, clips.shape[-1] // ratio)
        return vae_losses(vae, clips, torch.randn(shape, generator=generator, device=device))

    trained = train("vae", vae, losses, config, folder.checkpoint("vae"), device=device, resume=resume)
    vae.eval()
    vae.register_to_config(scaling_factor=round(1 / _deviation(vae, recordings, episodes), 4))
    with saved_folder(folder.weights("vae")) as target:
        vae.half().save_pretrained(target, safe_serialization=True)
    return trained


@torch.no_grad()
def _deviation(vae: AutoencoderKLCogVideoX, recordings: Recordings, episodes: tuple[Episode, ...]) -> float:
    generator = torch.Generator(recordings.device).manual_seed(0)
    clips = [to_pixels(draw_clips(recordings, episodes, 4, 16, generator)) for _ in range(8)]
    model: Any = vae
    return float(torch.cat([model.encode(clip).latent_dist.mean for clip in clips]).std())


@torch.no_grad()
def measure_vae(recordings: Recordings, folder: BuildFolder, held_out_tasks: tuple[str, ...]) -> dict[str, float]:
    """PSNR in dB on held-out clips of 16 frames, with the saved weights; `..._constant` is that of each clip's mean.

    `psnr_tasks` and the like are those of tasks that nothing was trained on.
    """
    vae: Any = read_vae(str(folder.weights("vae")))
    vae = vae.to(recordings.device).eval()
    results: dict[str, float] = {}
    held_out = recordings.chosen(lambda episode: episode.held_out)
    for suffix, unseen in (("", False), ("_tasks", True)):
        chosen = tuple(episode for episode in held_out if (episode.task in held_out_tasks) == unseen)
        sums = torch.zeros(4, dtype=torch.float64, device=recordings.device)
        counts = torch.zeros(2, dtype=torch.float64, device=recordings.device)
        generator = torch.Generator(recordings.device).manual_seed(1)
        for part in (chosen[first : first + 4] for first in range(0, len(chosen), 4)):
            clips = to_pixels(draw_clips(recordings, part, len(part), 16, generator))
            decoded = vae.decode(vae.encode(clips).latent_dist.mean).sample.clamp(-1, 1)
            errors = (decoded - clips).square().div(4), (clips.mean(2, keepdim=True) - clips).square().div(4)
            mask = moving(clips).expand_as(clips)
            sums += torch.stack([value for e in errors for value in (e.sum(), e[mask].sum())]).double()
            counts += torch.stack([torch.tensor(mask.numel(), device=mask.device), mask.sum()]).double()
        if len(chosen):
            names = ("psnr", "psnr_moving", "psnr_constant", "psnr_moving_constant")
            values = -10 * torch.log10(sums / counts.repeat(2))
            results |= {name + suffix: round(float(value), 2) for name, value in zip(names, values)}
    return results
