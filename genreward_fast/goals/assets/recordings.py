"""Recordings in the device's memory, as the parts draw from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from genreward_fast.errors import UserError
from genreward_fast.goals.assets.plan import BuildFolder
from genreward_fast.goals.progress import progress


@dataclass(frozen=True)
class Episode:
    """One recorded episode.

    Attributes:
        task: canonical name.
        kind: expert, half-expert or random.
        held_out: whether nothing may train on it.
        start, length: its frames among all that were read.
        solved_from: the first of its frames, counted from its own first, at or after the first success; None if there
            is none among them.
    """

    task: str
    kind: str
    held_out: bool
    start: int
    length: int
    solved_from: int | None


@dataclass(frozen=True, eq=False)
class Recordings:
    """All frames of a build's data, and the episodes that they belong to.

    Attributes:
        frames: size -> (N, size, size, 3) uint8, on the device.
        states: (N, 39) float32 on the device, Meta-World's: the hand is 0:3, the first object 4:7.
        episodes: in the order of their frames.
        actions: (N, E, 4) float32 in [-1, 1] on the device, the E actions that led from each frame to the episode's
            next one, zeros at its last frame; None if they were not recorded.
    """

    frames: dict[int, Tensor]
    states: Tensor
    episodes: tuple[Episode, ...]
    actions: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.states.device

    def chosen(self, wanted: Callable[[Episode], bool]) -> tuple[Episode, ...]:
        """The episodes that `wanted` is true of.

        Raises:
            UserError: there are none.
        """
        episodes = tuple(episode for episode in self.episodes if wanted(episode))
        if not episodes:
            raise UserError("the recordings hold no episode that is needed; record them again with --parts data")
        return episodes


def frame_indices(episodes: Sequence[Episode], device: torch.device) -> Tensor:
    """(M,) int64: all frames of the episodes."""
    return torch.cat([torch.arange(e.start, e.start + e.length) for e in episodes]).to(device)


def read_recordings(
    folder: BuildFolder, tasks: Sequence[str], sizes: Sequence[int], device: torch.device
) -> Recordings:
    """Reads the tasks' recordings.

    Args:
        sizes: sides of the frames that are needed, of those recorded.

    Raises:
        UserError: a file is missing or damaged, or has no frames of such a size.
    """
    frames: dict[int, list[Tensor]] = {size: [] for size in sizes}
    states: list[Tensor] = []
    actions: list[Tensor] = []
    episodes: list[Episode] = []
    start = 0
    for task in progress(tasks, unit="task", desc="reading data"):
        path = folder.recording(task)
        if not path.is_file():
            raise UserError(f"{path}: no such recording; make it with --parts data")
        try:
            with safe_open(str(path), framework="pt", device="cpu") as file:
                for size in sizes:
                    frames[size].append(file.get_tensor(f"frames_{size}").to(device))
                states.append(file.get_tensor("states").to(device))
                if "actions" in file.keys():  # noqa: SIM118  # safetensors' handle is no mapping
                    actions.append(file.get_tensor("actions").to(device))
                lines = json.loads(file.metadata()["episodes"])
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise UserError(f"{path}: damaged, or no such recording ({error}); delete it and record it again") from None
        for line in lines:
            episodes.append(Episode(task, line["kind"], line["held_out"], start, line["frames"], line["solved_from"]))
            start += line["frames"]
    joined = {size: torch.cat(parts) for size, parts in frames.items()}
    complete = len(actions) == len(tasks) and len({part.shape[1] for part in actions}) == 1
    return Recordings(joined, torch.cat(states), tuple(episodes), torch.cat(actions) if complete else None)
