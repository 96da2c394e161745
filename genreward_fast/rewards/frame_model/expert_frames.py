"""The frames of demonstrations, as small as the agent sees them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genreward_fast.goals.demos import read_demos
from genreward_fast.goals.frames import to_square
from genreward_fast.goals.progress import progress
from genreward_fast.rewards.frame_model.codec import SIZE


@dataclass(frozen=True, eq=False)
class ExpertFrames:
    """All frames of all clips, one behind the other.

    Attributes:
        frames: (F, 64, 64, 3) uint8.
        first: (F,) int64, the row at which each frame's clip begins.
        clips: name and number of frames of each clip, in order.
    """

    frames: Tensor
    first: Tensor
    clips: list[dict[str, Any]]

    @property
    def sha256(self) -> str:
        """Of all frames and where clips begin, hexadecimal."""
        digest = hashlib.sha256(self.frames.numpy().data)
        digest.update(self.first.numpy().data)
        return digest.hexdigest()

    def leading_to(self, length: int) -> Tensor:
        """(F, length) int64: the rows that end with each frame; before a clip's beginning its first frame repeats."""
        rows = torch.arange(len(self.frames)).unsqueeze(1) + torch.arange(1 - length, 1)
        return rows.maximum(self.first.unsqueeze(1))

    def windows(self, length: int) -> tuple[Tensor, Tensor]:
        """Rows of all `length` consecutive frames of a clip; a shorter clip is one window.

        Returns:
            (M, length) int64 rows, and (M, length) bool, false behind the end of a shorter clip.
        """
        rows = torch.arange(len(self.frames)).unsqueeze(1) + torch.arange(length)
        lengths = torch.tensor([clip["frames"] for clip in self.clips])
        end = lengths.cumsum(0).repeat_interleave(lengths).unsqueeze(1)
        kept = (rows[:, -1] < end[:, 0]) | (rows[:, 0] == self.first)
        rows, end = rows[kept], end[kept]
        return rows.minimum(end - 1), rows < end


def join_clips(clips: dict[str, Tensor]) -> ExpertFrames:
    """Clips by name, each (T, 64, 64, 3) uint8, as one."""
    lengths = torch.tensor([len(clip) for clip in clips.values()])
    first = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    described = [{"name": name, "frames": len(clip)} for name, clip in clips.items()]
    return ExpertFrames(torch.cat(list(clips.values())), first, described)


def read_expert_frames(folder: Path) -> ExpertFrames:
    """The demonstrations of a folder of any kind that `read_demos` knows.

    Raises:
        UserError: there is no such folder, it holds no demonstrations, or a file of it is missing or damaged.
    """
    demos = progress(read_demos(folder), unit="clip", desc="reading")
    return join_clips({demo.name: to_square(demo.frames(), SIZE) for demo in demos})
