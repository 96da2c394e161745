"""Rewards that are fitted to demonstrations: fits them to the training experts' episodes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from genreward_fast.bench.signal.episodes import TaskEpisodes
from genreward_fast.errors import UserError
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
        minutes: of both networks' training, at most, on all tasks together.
        seed: of the weights, and of everything that is drawn.

    Raises:
        UserError: a limit is not positive.
    """

    steps: int = 20_000
    minutes: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.minutes > 0:
            raise UserError(f"--fit-steps {self.steps}, --fit-minutes {self.minutes}: both must be positive")


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
    reward: str,
    task: TaskEpisodes,
    tasks: Sequence[TaskEpisodes],
    out: Path,
    preset: str,
    limits: FitLimits,
    device: torch.device,
) -> tuple[str, dict[str, int]]:
    """Fits a reward for a task, goes on with a fit that was interrupted, or takes one that is finished.

    TADPoLe is told the task in words and fitted to all of them at once; the others are not, and fitted to each alone.

    Args:
        reward: one of `rewards.fitting.FITTERS`.
        tasks: all that are measured.
        out: folder of the demonstrations and fits.

    Returns:
        What `--reward-weights` takes, and how many updates each network had.

    Raises:
        UserError, RunFailed, Interrupted: as of `fit`.
    """
    shared = reward == "tadpole"
    name = "all" if shared else task.task
    demonstrations, folder = out / "demonstrations" / name, out / "fitted" / reward / name
    record = folder / "fit.json"
    if not record.exists():
        write_demonstrations(demonstrations, tasks if shared else [task])
        config = FitConfig(
            reward,
            demonstrations,
            folder,
            steps=limits.steps,
            minutes=limits.minutes / 2 / (1 if shared else len(tasks)),
            seed=limits.seed,
            device=device,
            resume=(folder / "checkpoint.pt").exists(),
            preset=preset,
        )
        fit(config)
    losses = read_json(record)["losses"]
    return str(folder / "model" if shared else folder), {network: points[-1][0] for network, points in losses.items()}
