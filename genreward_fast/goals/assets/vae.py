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
"""Crops in a step; of whole pictures as many as have no more pixels."""
CROP, CROPS_UNTIL = 64, 0.6
"""Side of the crops in pixels, and how far the training is when it goes over to whole pictures."""
LENGTHS = (16, 16, 16, 9)
"""Frames of a step's clips, in turn: windows have 4n, generated videos 4n + 1."""
_MOVING = 16 / 255
_KL_WEIGHT = 3e-4
_EDGE_WEIGHT = 0.5
_MOVING_WEIGHT = 6.0
_SQUARE_WEIGHT = 8.0  # an error of 1/16, that of 30 dB, adds half its size
_FIRST_LOGVAR = -6.0  # with the noise of 0, the decoder sees next to nothing of the clip for hundreds of steps


def draw_clips(
    pictures: Tensor, spans: Tensor, batch: int, length: int, side: int, generator: torch.Generator
) -> Tensor:
    """(batch, length, side, side, 3) uint8: evenly spaced frames of random parts of episodes, each clip one square.

    Args:
        pictures: (N, S, S, 3) uint8.
        spans: (M, 2) int64, first frame and number of frames of the episodes: `episode_spans`.
        side: of the squares in pixels, at most S.
    """
    device = pictures.device
    start, frames = spans[torch.randint(len(spans), (batch,), generator=generator, device=device)].unbind(1)
    share, place, top, left = torch.rand(4, batch, 1, generator=generator, device=device)
    span = (0.25 + 0.75 * share) * (frames[:, None] - 1)
    first = place * (frames[:, None] - 1 - span)
    frame = start[:, None] + (first + span * torch.linspace(0, 1, length, device=device)).round().long()
    if side == pictures.shape[1]:
        return pictures[frame]
    pixel = torch.arange(side, device=device)
    most = pictures.shape[1] - side
    row, column = ((corner * (most + 1)).long().clamp(max=most) + pixel for corner in (top, left))
    return pictures[frame[:, :, None, None], row[:, None, :, None], column[:, None, None, :]]


def episode_spans(episodes: tuple[Episode, ...], device: torch.device) -> Tensor:
    """(M, 2) int64: first frame and number of frames of each episode."""
    return torch.tensor([(episode.start, episode.length) for episode in episodes], device=device)


def moving(clips: Tensor) -> Tensor:
    """(B, 3, T, H, W) in [-1, 1] to (B, 1, T, H, W) bool: pixels that are not what they are on average in the clip."""
    return (clips - clips.mean(2, keepdim=True)).abs().amax(1, keepdim=True) > 2 * _MOVING


def vae_losses(vae: AutoencoderKLCogVideoX, clips: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """Pixels and their differences in space, moving ones weighted, and a small KL (arXiv 1312.6114).

    The pixels' is L1 with squared errors added, which are what the PSNR is about.

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
    pixels = (weight * (difference.abs() + _SQUARE_WEIGHT * difference.square())).mean()
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
    spans = episode_spans(recordings.chosen(lambda episode: not episode.held_out), device)
    pictures = recordings.frames[max(recordings.frames)]
    size = pictures.shape[1]
    crop = min(CROP, size)
    wholes = max(1, batch * crop**2 // size**2)
    channels = vae.config["latent_channels"]
    with torch.no_grad():
        vae.encoder.conv_out.conv.bias[channels:] = _FIRST_LOGVAR
    ratio = 2 ** (len(vae.config["block_out_channels"]) - 1)

    def losses(generator: torch.Generator, done: float) -> dict[str, Tensor]:
        # The turn is drawn, too: a resumed run has no count of its own.
        pick = int(torch.randint(len(LENGTHS), (), generator=torch.Generator().manual_seed(generator.initial_seed())))
        length = LENGTHS[pick]
        number, side = (batch, crop) if done < CROPS_UNTIL else (wholes, size)
        _set_chunks(vae, whole=done < CROPS_UNTIL)
        clips = to_pixels(draw_clips(pictures, spans, number, length, side, generator))
        shape = (number, channels, -(-length // 4), side // ratio, side // ratio)
        return vae_losses(vae, clips, torch.randn(shape, generator=generator, device=device))

    trained = train("vae", vae, losses, config, folder.checkpoint("vae"), device=device, resume=resume)
    vae.eval()
    _set_chunks(vae, whole=False)
    vae.register_to_config(scaling_factor=round(1 / _deviation(vae, pictures, spans), 4))
    with saved_folder(folder.weights("vae")) as target:
        vae.half().save_pretrained(target, safe_serialization=True)
    return trained


def _set_chunks(vae: AutoencoderKLCogVideoX, whole: bool) -> None:
    """How many frames are computed at a time: as the library does, 8 and 2 of latents, or all of a clip's at once.

    The group norms' statistics are a chunk's, so that the training ends as the weights are used. All at once are half
    the kernels to launch.
    """
    model: Any = vae
    model.num_sample_frames_batch_size, model.num_latent_frames_batch_size = (16, 4) if whole else (8, 2)


@torch.no_grad()
def _deviation(vae: AutoencoderKLCogVideoX, pictures: Tensor, spans: Tensor) -> float:
    generator = torch.Generator(pictures.device).manual_seed(0)
    clips = [to_pixels(draw_clips(pictures, spans, 4, 16, pictures.shape[1], generator)) for _ in range(8)]
    model: Any = vae
    return float(torch.cat([model.encode(clip).latent_dist.mean for clip in clips]).std())


@torch.no_grad()
def measure_vae(recordings: Recordings, folder: BuildFolder, held_out_tasks: tuple[str, ...]) -> dict[str, float]:
    """PSNR in dB on held-out clips of 16 frames, with the saved weights; `..._constant` is that of each clip's mean.

    `psnr_tasks` and the like are those of tasks that nothing was trained on.
    """
    vae: Any = read_vae(str(folder.weights("vae")))
    vae = vae.to(recordings.device).eval()
    pictures = recordings.frames[max(recordings.frames)]
    results: dict[str, float] = {}
    held_out = recordings.chosen(lambda episode: episode.held_out)
    for suffix, unseen in (("", False), ("_tasks", True)):
        chosen = tuple(episode for episode in held_out if (episode.task in held_out_tasks) == unseen)
        sums = torch.zeros(4, dtype=torch.float64, device=recordings.device)
        counts = torch.zeros(2, dtype=torch.float64, device=recordings.device)
        generator = torch.Generator(recordings.device).manual_seed(1)
        for part in (chosen[first : first + 4] for first in range(0, len(chosen), 4)):
            spans = episode_spans(part, recordings.device)
            clips = to_pixels(draw_clips(pictures, spans, len(part), 16, pictures.shape[1], generator))
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
