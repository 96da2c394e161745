"""What the tiny image-to-video model makes of held-out starts: is its last frame nearer to the solved task?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from genreward_fast.encoders.presets import EncoderConfig, load_image_encoder
from genreward_fast.envs.tasks import describe
from genreward_fast.files import atomic_path
from genreward_fast.goals.assets.generator import video_frames
from genreward_fast.goals.assets.plan import BuildFolder
from genreward_fast.goals.assets.recordings import Episode, Recordings
from genreward_fast.goals.assets.vae import to_pixels
from genreward_fast.goals.generated_goal import SAMPLER
from genreward_fast.goals.generation import GenerationConfig, VideoGenerator
from genreward_fast.goals.text_embeddings import TextEmbeddings
from genreward_fast.goals.video_model import read_pipeline

SHEET = 25
_PER_TASK = 1


def measure_generator(
    recordings: Recordings,
    folder: BuildFolder,
    held_out_tasks: tuple[str, ...],
    *,
    sampler: GenerationConfig = SAMPLER,
    per_task: int = _PER_TASK,
) -> dict[str, float]:
    """Generates videos of held-out starts with the saved weights, and draws a sheet of them.

    Returns:
        nearer: the share of starts whose generated last frame is nearer to the episode's frame of success than its
            first frame is, by the trained DINO's class token if there is one, else by the autoencoder's latents
            (`nearer_latents` is always that); nearer_tasks: the same on tasks that nothing was trained on.
    """
    device = recordings.device
    chosen = _starts(recordings, per_task)
    root = folder.weights("generator")
    pipeline = read_pipeline(root)
    length = pipeline.transformer.config.max_text_seq_length
    embed = TextEmbeddings(root, length=length, dtype=torch.float32, device="cpu", cache=folder.root / "text")
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    generator = VideoGenerator(pipeline, sampler)
    pictures = recordings.frames[max(recordings.frames)]
    empty = embed([""])[0]
    shown = []
    for episode in chosen:
        indices = video_frames(episode)
        first, solved = pictures[indices[0]], pictures[indices[-1]]
        ((_, video),) = generator.generate(first.cpu(), embed([describe(episode.task)])[0], empty)
        shown.append(torch.stack([first, video[-1].to(device), solved]))
    frames = torch.stack(shown)
    results: dict[str, float] = {"starts": len(chosen)}
    distances = {"nearer_latents": _latent_distances(pipeline.vae, frames)}
    if (folder.weights("dino")).is_dir():
        dino = load_image_encoder(EncoderConfig(preset="tiny", dino=str(folder.weights("dino"))), device)
        distances["nearer"] = _distances(torch.stack([dino(frames[:, place]) for place in range(3)], 1).flatten(2))
    else:
        distances["nearer"] = distances["nearer_latents"]
    unseen = torch.tensor([episode.task in held_out_tasks for episode in chosen], device=device)
    for name, (before, after) in distances.items():
        nearer = (after < before).float()
        for suffix, which in (("", ~unseen), ("_tasks", unseen)):
            if which.any():
                results[name + suffix] = round(float(nearer[which].mean()), 3)
    draw_sheet(frames, chosen, folder.measured("generator").with_suffix(".png"))
    return results


def _starts(recordings: Recordings, per_task: int) -> list[Episode]:
    """The first held-out expert episodes of every task."""
    found: dict[str, list[Episode]] = {}
    for episode in recordings.chosen(lambda e: e.kind == "expert" and e.held_out and bool(e.solved_from)):
        found.setdefault(episode.task, []).append(episode)
    return [episode for episodes in found.values() for episode in episodes[:per_task]]


@torch.no_grad()
def _latent_distances(vae: Any, frames: Tensor) -> tuple[Tensor, Tensor]:
    """`_distances` of (N, 3, H, W, 3) uint8 by the autoencoder's means, each frame as a video of one."""
    encoded = [
        vae.encode(to_pixels(part)[:, :, :1]).latent_dist.mean for part in frames.flatten(0, 1)[:, None].split(16)
    ]
    return _distances(torch.cat(encoded).flatten(1).unflatten(0, (len(frames), 3)))


def _distances(features: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 3, D) of first, generated last and solved frames to the cosine distances of the first two from the third."""
    units = functional.normalize(features.float(), dim=-1)
    cosines = torch.einsum("nkd,nd->nk", units[:, :2], units[:, 2])
    return 1 - cosines[:, 0], 1 - cosines[:, 1]


def draw_sheet(frames: Tensor, episodes: Sequence[Episode], path: Path) -> None:
    """Up to 25 starts, spread over all: first frame, generated last frame, the expert's frame of success."""
    picked = torch.linspace(0, len(frames) - 1, min(SHEET, len(frames))).round().long().tolist()
    side, columns, title = 96, 5, 12
    rows = -(-len(picked) // columns)
    sheet = Image.new("RGB", (columns * (3 * side + 12), rows * (side + title + 6)), "white")
    pen = ImageDraw.Draw(sheet)
    for place, number in enumerate(picked):
        left, top = (place % columns) * (3 * side + 12), (place // columns) * (side + title + 6)
        pen.text((left, top), episodes[number].task, fill="black")
        for column, frame in enumerate(frames[number].cpu()):
            picture = Image.fromarray(frame.numpy()).resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(picture, (left + column * side, top + title))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        sheet.convert("P", palette=Image.Palette.ADAPTIVE).save(temporary, format="png", optimize=True)
