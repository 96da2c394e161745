"""What the weights show on held-out episodes, beside what is asked of them: one table, in `results/assets.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from genreward_fast.encoders.presets import EncoderConfig, load_video_encoder
from genreward_fast.envs.tasks import PAPER_TASKS
from genreward_fast.errors import UserError
from genreward_fast.files import read_json, write_json
from genreward_fast.goals.assets.plan import BuildFolder, RecordingConfig
from genreward_fast.goals.assets.record import KINDS
from genreward_fast.goals.assets.recordings import Episode, Recordings, read_recordings
from genreward_fast.goals.assets.saving import sizes
from genreward_fast.goals.frames import uniform_indices
from genreward_fast.kernels.latent_cosine import centred, latent_cosine

ASKED: tuple[tuple[str, str, str, float], ...] = (
    ("vae", "psnr", "reconstruction, dB", 30),
    ("vae", "psnr_moving", "reconstruction of pixels that move, dB", 24),
    ("dino", "gripper", "gripper's position from the class token, linear R²", 0.8),
    ("dino", "object", "object's position from the class token, linear R²", 0.8),
    ("clip", "top5", "sentence to frame, right task among the first 5 of 50", 0.8),
    ("clip", "at_or_after", "chosen goal frame at or after the first success", 0.8),
    ("generator", "nearer", "generated last frame nearer to success than the first one, share of starts", 0.7),
)
"""Part, figure, what it is, the least that is asked."""
ASKED_AUC = 0.8
_WINDOW = 128  # steps


def check(folder: BuildFolder, recording: RecordingConfig, device: torch.device) -> list[str]:
    """Gathers what the parts measured, measures the video level's ranking, and writes it all.

    Returns:
        The table, line by line; a line for each part that has not been built, which is left out of it.

    Raises:
        UserError: no part has been built, or there are no recordings for the ranking.
    """
    names = ("vae", "dino", "clip", "generator")
    parts: dict[str, Any] = {
        part: read_json(folder.measured(part)) for part in names if folder.measured(part).is_file()
    }
    missing = [part for part in names if part not in parts]
    if not parts:
        raise UserError(f"{folder.measured(names[0])}: not there yet, nor any other part; build them with --parts")
    table = [
        {"what": what, "value": parts[part]["measured"][name], "asked": asked}
        for part, name, what, asked in ASKED
        if part in parts
    ]
    ranking = _ranking(folder, recording, device) if "vae" in parts else {}
    for task, auc in ranking.items():
        what = f"video level ranks expert > half-expert > random, {task}, AUC"
        asked = min(auc["expert_over_half"], auc["half_over_random"])
        table.append({"what": what, "value": asked, "asked": ASKED_AUC})
    result = {"table": table, "ranking": ranking, "parts": parts, "bytes": sizes(folder.root / "tiny")}
    write_json(folder.measured("assets"), result)
    return [_line(row) for row in table] + [f"MISSING  {part}: build it with --parts {part}" for part in missing]


def _ranking(folder: BuildFolder, recording: RecordingConfig, device: torch.device) -> dict[str, dict[str, float]]:
    tasks = [task for task in PAPER_TASKS if task in recording.tasks]
    if not tasks:
        raise UserError(f"{folder.root}: has no recordings of the paper's tasks, on which the video level is checked")
    return video_ranking(read_recordings(folder, tasks, (max(recording.sizes),), device), folder, recording.every)


def _line(row: dict[str, Any]) -> str:
    verdict = "met" if row["value"] >= row["asked"] else "NOT MET"
    return f"{verdict:8}{row['value']:8.3f} (asked {row['asked']:g})  {row['what']}"


@torch.no_grad()
def video_ranking(recordings: Recordings, folder: BuildFolder, every: int) -> dict[str, dict[str, float]]:
    """How the video-level reward ranks held-out windows, for each task.

    The goals are the experts' episodes that were trained on, from their start to the first success; a window is the
    last 128 steps of an episode, or all of a shorter one. AUCs are averaged over the goals.

    Args:
        every: steps from one recorded frame to the next.

    Returns:
        For each task the AUC of expert over half-expert, half-expert over random and expert over random windows; and
        the same, named `centred_...`, of latents from which their mean over the clip's time is taken off, which is what
        all windows of a task have in common.
    """
    config = EncoderConfig(preset="tiny", vae=str(folder.weights("vae")), clip_frame_size=max(recordings.frames))
    encoder = load_video_encoder(config, recordings.device)
    pictures = recordings.frames[max(recordings.frames)]

    def latents(episodes: Sequence[Episode], until_success: bool) -> Tensor:
        clips = []
        for episode in episodes:
            end = episode.length
            if until_success and episode.solved_from is not None:
                end = min(end, episode.solved_from + 1)
            begin = 0 if until_success else max(0, end - _WINDOW // every)
            indices = [episode.start + begin + i for i in uniform_indices(end - begin, config.clip_length)]
            clips.append(pictures[torch.tensor(indices, device=pictures.device)])
        return encoder(torch.stack(clips))

    results = {}
    for task in dict.fromkeys(episode.task for episode in recordings.episodes):

        def chosen(kind: str, held_out: bool, task: str = task) -> tuple[Episode, ...]:
            return recordings.chosen(lambda e: (e.task, e.kind, e.held_out) == (task, kind, held_out))

        windows = {kind: latents(chosen(kind, True), until_success=False) for kind in KINDS}
        goals = latents(chosen("expert", False), until_success=True)
        results[task] = _aucs(goals, windows)
        without = {kind: centred(values) for kind, values in windows.items()}
        results[task] |= {f"centred_{name}": value for name, value in _aucs(centred(goals), without).items()}
    return results


def _aucs(goals: Tensor, windows: dict[str, Tensor]) -> dict[str, float]:
    """AUCs between kinds of windows by their cosines with each goal, averaged over the goals."""
    found = []
    for goal in goals:
        unit = functional.normalize(goal.flatten(), dim=0).view_as(goal)
        expert, half, random = (latent_cosine(windows[kind], unit) for kind in KINDS)
        found.append([auc(expert, half), auc(half, random), auc(expert, random)])
    names = ("expert_over_half", "half_over_random", "expert_over_random")
    return {name: round(value, 3) for name, value in zip(names, torch.tensor(found).mean(0).tolist())}


def auc(higher: Tensor, lower: Tensor) -> float:
    """The share of pairs in which a score of `higher` (N,) is above one of `lower` (M,); ties count half."""
    difference = higher[:, None] - lower
    return float(((difference > 0).double() + 0.5 * (difference == 0).double()).mean())
