"""Rewards that are fitted to demonstrations: fits them to the training experts' episodes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from genreward_fast.bench.signal.episodes import TaskEpisodes
from genreward_fast.files import atomic_path, read_json
from genreward_fast.goals.captions import captions
from genreward_fast.goals.progress import progress
from genreward_fast.goals.video_io import write_video
from genreward_fast.rewards.fitting import FitConfig, fit

SIMULATOR_RATE = 80.0
"""Steps per second of Meta-World's simulator."""


@dataclass(frozen=True)
class FitLimits:
    """How long a reward is fitted.

    Attributes:
        steps: updates of each of its two networks, at most.
        minutes: of both networks' training, at most.
        seed: of the weights, and of everything that is drawn.
    """

    steps: int = 20_000
    minutes: float = 3.0
    seed: int = 0


def write_demonstrations(folder: Path, tasks: Sequence[TaskEpisodes]) -> None:
    """Writes the training experts' episodes as captioned clips, unless they are there already."""
    table = folder / "captions.jsonl"
    if table.exists():  # the last thing that is written
        return
    folder.mkdir(parents=True, exist_ok=True)
    experts = [(task, episode) for task in tasks for episode in task.training if episode.kind == "expert"]
    lines = []
    for number, (task, episode) in enumerate(progress(experts, unit="clip", desc="demonstrations")):
        pictures = task.recordings.frames[max(task.recordings.frames)]
        name = f"{task.task}-{number:04d}.mp4"
        rate = SIMULATOR_RATE / task.steps_per_row
        write_video(folder / name, pictures[episode.start : episode.start + episode.length], rate)
        lines.append(json.dumps({"file": name, "captions": list(captions(task.task))}) + "\n")
    with atomic_path(table) as temporary:
        temporary.write_text("".join(lines))


def fitted_weights(
    reward: str, demonstrations: Path, out: Path, preset: str, limits: FitLimits, device: torch.device
) -> tuple[str, str]:
    """Fits a reward, goes on with a fit that was interrupted, or takes one that is finished.

    Args:
        reward: one of `rewards.fitting.FITTERS`.
        out: folder of the fit.

    Returns:
        What `--reward-weights` takes, and how long which network was fitted.

    Raises:
        UserError, RunFailed, Interrupted: as of `fit`.
    """
    record = out / "fit.json"
    if not record.exists():
        config = FitConfig(
            reward,
            demonstrations,
            out,
            steps=limits.steps,
            minutes=limits.minutes / 2,
            seed=limits.seed,
            device=device,
            resume=(out / "checkpoint.pt").exists(),
            preset=preset,
        )
        fit(config)
    losses = read_json(record)["losses"]
    updates = ", ".join(f"{network} {points[-1][0]}" for network, points in losses.items())
    return str(out / "model" if reward == "tadpole" else out), f"fitted: {updates} updates"
