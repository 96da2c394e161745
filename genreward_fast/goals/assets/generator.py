"""The tiny image-to-video model: a first frame and a sentence to a video of the task being solved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from torch import Tensor

from genreward_fast.encoders.video import read_vae
from genreward_fast.envs.tasks import TASKS
from genreward_fast.goals.assets.generator_model import (
    FRAMES,
    TRANSFORMER,
    Generator,
    build_tokenizer,
    save_model,
    token_ids,
)
from genreward_fast.goals.assets.loop import LoopConfig, Trained, train
from genreward_fast.goals.assets.plan import BuildFolder
from genreward_fast.goals.assets.recordings import Episode, Recordings
from genreward_fast.goals.assets.saving import autocast, saved_folder
from genreward_fast.goals.assets.vae import to_pixels
from genreward_fast.goals.captions import captions
from genreward_fast.goals.finetune.conditioning import Conditioning
from genreward_fast.goals.finetune.objective import regression_target
from genreward_fast.goals.progress import progress
from genreward_fast.goals.video_model_configs import SCHEDULER

STEPS = 40_000
BATCH = 48
AFTER = 2
"""Recorded frames that a video goes on for after the first success."""
_STARTS = 4
"""Videos of an episode: from its start, and from later frames of its first third."""
_DROPPED = 0.1
_CHANGE_WEIGHT = 4.0


def video_frames(episode: Episode, later: float = 0.0) -> Tensor:
    """(FRAMES,) int64: evenly spaced frames of an expert's episode until shortly after its first success.

    Args:
        later: the first of them, as a share of the way to the success.
    """
    if episode.solved_from is None:
        raise ValueError("an episode without a success shows no goal")
    last = min(episode.solved_from + AFTER, episode.length - 1)
    return episode.start + torch.linspace(later * episode.solved_from, last, FRAMES).round().long()


@torch.no_grad()
def encode_videos(vae: Any, recordings: Recordings, indices: Tensor, batch: int = 8) -> tuple[Tensor, Tensor]:
    """Moments (mean, then deviation) of videos and of their first frames.

    Args:
        indices: (N, FRAMES) int64 of the recordings' frames.

    Returns:
        (N, 2, C, T', H', W') and (N, 2, C, H', W') float16 on the recordings' device.
    """
    pictures = recordings.frames[max(recordings.frames)]
    videos, firsts = [], []
    for start in progress(range(0, len(indices), batch), unit="batch", desc="encoding"):
        pixels = to_pixels(pictures[indices[start : start + batch].to(pictures.device)])
        with autocast(pixels.device):
            video, first = vae.encode(pixels).latent_dist, vae.encode(pixels[:, :, :1]).latent_dist
        videos.append(torch.stack([video.mean, video.std], 1).half())
        firsts.append(torch.stack([first.mean, first.std], 1).half()[:, :, :, 0])
    return torch.cat(videos), torch.cat(firsts)


def generator_losses(
    generator: Generator,
    conditioning: Conditioning,
    scheduler: Any,
    video: Tensor,
    image: Tensor,
    tokens: Tensor,
    draws: torch.Generator,
) -> dict[str, Tensor]:
    """The denoising error in the scheduler's prediction type, larger weights where the video departs from its start.

    Args:
        video: (B, C, T', H', W') latents, image: (B, C, H', W') of the first frames, neither scaled.
        tokens: (B, L) int64.
    """
    latents = conditioning.video_latents(video)
    pictures = conditioning.image_latents(image, latents.shape[1])
    timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(video),), generator=draws, device=video.device)
    noise = torch.randn(latents.shape, generator=draws, device=video.device)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    with autocast(video.device):
        text = generator.text_encoder(tokens)[0]
        inputs = conditioning.model_inputs(noisy, pictures, text, timesteps, torch.float32)
        prediction = generator.transformer(**inputs)[0]
    target = regression_target(scheduler, latents, noise, timesteps)
    errors = (prediction.float() - target).square().mean(2)
    change = (latents - latents[:, :1]).abs().mean(2)
    weight = 1 + _CHANGE_WEIGHT * (change / change.mean().clamp_min(1e-6)).clamp(max=4.0)
    return {"loss": (weight * errors).mean() / weight.mean(), "error": errors.mean()}


def train_generator(
    recordings: Recordings,
    folder: BuildFolder,
    config: LoopConfig,
    *,
    batch: int = BATCH,
    resume: bool = False,
    transformer: dict[str, Any] = TRANSFORMER,
) -> Trained:
    """Trains transformer and text encoder on the experts' episodes with the build's own autoencoder, and saves them.

    Args:
        transformer: its configuration.
    """
    device = recordings.device
    vae: Any = read_vae(str(folder.weights("vae")))
    vae = vae.to(device).eval()
    tokenizer = build_tokenizer()
    generator = Generator(len(tokenizer), config.seed, transformer).to(device)
    conditioning = Conditioning(generator.transformer.config, vae.config)
    scheduler: Any = diffusers.CogVideoXDDIMScheduler(**SCHEDULER)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(device)

    episodes = recordings.chosen(lambda e: e.kind == "expert" and not e.held_out and bool(e.solved_from))
    starts = [part / (3 * max(_STARTS - 1, 1)) for part in range(_STARTS)]
    indices = torch.stack([video_frames(episode, later) for episode in episodes for later in starts])
    videos, images = encode_videos(vae, recordings, indices)
    tasks, table = caption_table(tokenizer, [episode.task for episode in episodes for _ in starts])
    tasks, table = tasks.to(device), table.to(device)
    nothing = token_ids(tokenizer, [""]).to(device)

    def losses(draws: torch.Generator, _done: float) -> dict[str, Tensor]:
        which = torch.randint(len(videos), (batch,), generator=draws, device=device)
        wording = torch.randint(table.shape[1], (batch,), generator=draws, device=device)
        dropped = torch.rand(batch, 1, generator=draws, device=device) < _DROPPED
        tokens = torch.where(dropped, nothing, table[tasks[which], wording])
        sampled = []
        for moments in (videos[which].float(), images[which].float()):
            noise = torch.randn(moments[:, 0].shape, generator=draws, device=device)
            sampled.append(moments[:, 0] + moments[:, 1] * noise)
        return generator_losses(generator, conditioning, scheduler, sampled[0], sampled[1], tokens, draws)

    checkpoint = folder.checkpoint("generator")
    trained = train(
        "generator", generator, losses, config, checkpoint, device=device, after=generator.follow, resume=resume
    )
    with saved_folder(folder.weights("generator")) as target:
        save_model(generator.cpu(), tokenizer, vae.cpu(), target)
    return trained


def caption_table(tokenizer: Any, tasks: Sequence[str]) -> tuple[Tensor, Tensor]:
    """(N,) int64, a number for each one's task; (len(TASKS), W, L) int64, the tokens of W captions of every task."""
    most = max(len(captions(task)) for task in TASKS)
    rows = [token_ids(tokenizer, [captions(task)[i % len(captions(task))] for i in range(most)]) for task in TASKS]
    return torch.tensor([TASKS.index(task) for task in tasks]), torch.stack(rows)
