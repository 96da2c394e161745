"""What inverse dynamics are fitted on: frames of demonstrations, and the actions between them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genreward_fast.errors import UserError
from genreward_fast.goals.demo_set import Demo
from genreward_fast.goals.frames import to_size
from genreward_fast.goals.progress import progress


@dataclass(frozen=True, eq=False)
class Transitions:
    """The frames of several clips, one clip after the other.

    Attributes:
        frames: (F, H, W, 3) uint8 on the CPU.
        summed: (F, A) float64, the actions of the clip before each frame added up, so that the mean over any steps of
            a clip is one difference.
        left: (F,) int64, frames of the clip that come after this one.
    """

    frames: Tensor
    summed: Tensor
    left: Tensor

    def pairs(self, first: Tensor, gap: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The frames at `first`, those `gap` steps later, and the mean action between: (N, H, W, 3) twice, (N, A).

        Args:
            first: (N,) int64.
            gap: (N,) int64, at least 1 and at most `left[first]`.
        """
        second = first + gap
        mean = (self.summed[second] - self.summed[first]) / gap.unsqueeze(1)
        return self.frames[first], self.frames[second], mean.float()

    def starts(self, gap: int) -> Tensor:
        """(N,) int64: all frames that have one `gap` steps later in their clip."""
        return torch.nonzero(self.left >= gap).squeeze(1)

    def draw(self, count: int, max_gap: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random `first` and `gap` of `pairs`: any frame but a clip's last, any gap that ends within the clip."""
        starts = self.starts(1)
        first = starts[torch.randint(len(starts), (count,), generator=generator)]
        most = self.left[first].clamp(max=max_gap)
        gap = 1 + (torch.rand(count, generator=generator) * most).long()
        return first, gap.minimum(most)


def read_transitions(demos: Sequence[Demo], height: int, width: int) -> Transitions:
    """The clips' frames, cropped and resized, with their actions.

    Raises:
        UserError: a clip without actions, with another number of them than its frames take, or damaged.
    """
    frames: list[Tensor] = []
    summed: list[Tensor] = []
    left: list[Tensor] = []
    for demo in progress(demos, desc="reading clips", unit="clip"):
        actions, pictures = demo.actions(), demo.frames()
        if len(actions) != len(pictures) - 1:
            wrong = f"holds {len(actions)} actions for {len(pictures)} frames"
            raise UserError(f"{demo.actions_path}: {wrong}; delete it and run genreward demos --resume")
        if summed and actions.shape[1] != summed[0].shape[1]:
            wrong = f"its actions have {actions.shape[1]} numbers, those before it {summed[0].shape[1]}"
            raise UserError(f"{demo.actions_path}: {wrong}; fit to clips of one kind")
        frames.append(to_size(pictures, height, width))
        zero = torch.zeros(1, actions.shape[1], dtype=torch.float64)
        summed.append(torch.cat([zero, actions.double().cumsum(0)]))
        left.append(torch.arange(len(pictures) - 1, -1, -1))
    return Transitions(torch.cat(frames), torch.cat(summed), torch.cat(left))


def split(demos: Sequence[Demo], held_out: float, seed: int) -> tuple[list[Demo], list[Demo]]:
    """Clips to fit on and clips to judge by: a random share `held_out`, at least one clip.

    Raises:
        UserError: there are fewer than two clips.
    """
    if len(demos) < 2:
        raise UserError(f"{demos[0].path}: is the only clip; inverse dynamics need one to fit on and one to judge by")
    order = np.random.default_rng(seed).permutation(len(demos))
    judged = set(order[: min(max(1, round(held_out * len(demos))), len(demos) - 1)].tolist())
    parts: tuple[list[Demo], list[Demo]] = ([], [])
    for index, demo in enumerate(demos):
        parts[index in judged].append(demo)
    return parts


def described(demos: Sequence[Demo]) -> dict[str, Any]:
    """What the demonstrations show: `camera`, `rendering`, `size`, and `tasks` with the mean number of steps of their
    clips.

    Raises:
        UserError: the clips differ in how they show it, or do not say what they show.
    """
    steps: dict[str, list[int]] = {}
    names = ("camera", "rendering", "size")
    views = set()
    for demo in demos:
        try:
            views.add(tuple(demo.details[name] for name in names))
            steps.setdefault(demo.details["task"], []).append(demo.details["frames"] - 1)
        except KeyError:
            raise UserError(f"{demo.path}: does not say task and camera; use a set made by genreward demos") from None
    if len(views) != 1:
        raise UserError(f"{demos[0].path.parent}: its clips differ in {', '.join(names)}; collect a set for each")
    means = {task: float(np.mean(counts)) for task, counts in steps.items()}
    return dict(zip(names, *views)) | {"tasks": means}


def identity(demos: Sequence[Demo]) -> str:
    """Of the clips' and actions' bytes, hexadecimal: which data a checkpoint was made with."""
    parts = []
    for demo in demos:
        actions = hashlib.sha256(demo.actions().numpy().tobytes()).hexdigest()
        parts.append([demo.name, demo.sha256, actions])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
