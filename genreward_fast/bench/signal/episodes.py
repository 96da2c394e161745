"""One task's recorded episodes, as rows: a frame, and the actions that led from it to the next recorded one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from genreward_fast.envs.tasks import describe
from genreward_fast.errors import UserError
from genreward_fast.goals.assets.record import KINDS
from genreward_fast.goals.assets.recordings import Episode, Recordings
from genreward_fast.goals.frames import to_square, uniform_indices
from genreward_fast.goals.goal import Goal

GOAL_FRAMES = 49
"""Of a goal out of a demonstration: what the video model generates."""


@dataclass(frozen=True, eq=False)
class TaskEpisodes:
    """
    Attributes:
        task: canonical name.
        recordings: of this task, and of others perhaps.
        held_out: kind -> the episodes that are scored.
        training: those that a reward may learn from; the goal is one of them.
    """

    task: str
    recordings: Recordings
    held_out: dict[str, tuple[Episode, ...]]
    training: tuple[Episode, ...]

    @property
    def steps_per_row(self) -> int:
        """Environment steps from one recorded frame to the next."""
        return self._recorded_actions.shape[1]

    @property
    def action_size(self) -> int:
        """Numbers in the actions of a row."""
        return self._recorded_actions[0].numel()

    @property
    def shortest(self) -> int:
        """Rows that every held-out episode has. The last frame has no action, so it is no row."""
        return min(episode.length for episodes in self.held_out.values() for episode in episodes) - 1

    def last_rows(self, episodes: Sequence[Episode], count: int) -> Tensor:
        """(B, count) int64: where in the recordings the last rows of each episode are."""
        ends = torch.tensor([episode.start + episode.length - 1 for episode in episodes])
        return (ends[:, None] + torch.arange(-count, 0)).to(self.recordings.device)

    def frames(self, rows: Tensor, size: int) -> Tensor:
        """(..., size, size, 3) uint8: as recorded, or resized from the largest that were recorded."""
        recorded = self.recordings.frames
        return recorded[size][rows] if size in recorded else to_square(recorded[max(recorded)][rows], size)

    def actions(self, rows: Tensor) -> Tensor:
        """(..., A) float32: all actions of each row, one behind the other."""
        return self._recorded_actions[rows].flatten(-2)

    def demonstrated_goal(self) -> Goal:
        """The first training expert's way to its first success. Its frames repeat where it has fewer than 49.

        Raises:
            UserError: no training expert succeeds.
        """
        for episode in self.training:
            if episode.kind == "expert" and episode.solved_from is not None and episode.solved_from < episode.length:
                shown = [episode.start + i for i in uniform_indices(episode.solved_from + 1, GOAL_FRAMES)]
                pictures = self.recordings.frames[max(self.recordings.frames)]
                video = pictures[torch.tensor(shown, device=pictures.device)]
                return Goal.from_video(
                    video, describe(self.task), select="last", provenance={"source": "a training expert's episode"}
                )
        raise UserError(f"{self.task}: no training expert succeeds, so there is no goal; name some with --goals")

    @property
    def _recorded_actions(self) -> Tensor:
        assert self.recordings.actions is not None  # `episodes_of` has looked
        return self.recordings.actions


def episodes_of(recordings: Recordings, tasks: Sequence[str], folder: Path) -> list[TaskEpisodes]:
    """The tasks' episodes.

    Args:
        folder: where they are from, for errors.

    Raises:
        UserError: they have no actions, or a task lacks held-out episodes of a kind or training experts.
    """
    if recordings.actions is None:
        raise UserError(f"{folder}: its recordings have no actions; record them anew with --record")
    found = []
    for task in tasks:
        mine = [episode for episode in recordings.episodes if episode.task == task]
        held_out = {kind: tuple(e for e in mine if e.kind == kind and e.held_out) for kind in KINDS}
        training = tuple(episode for episode in mine if not episode.held_out)
        if lacking := next((kind for kind, episodes in held_out.items() if not episodes), None):
            raise UserError(f"{folder}: has no held-out {lacking} episode of {task}; leave the task out of --tasks")
        if not any(episode.kind == "expert" for episode in training):
            raise UserError(f"{folder}: has no training expert of {task}; leave the task out of --tasks")
        found.append(TaskEpisodes(task, recordings, held_out, training))
    return found
