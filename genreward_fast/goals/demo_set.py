"""Captioned video clips, wherever they come from."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

from torch import Tensor

from genreward_fast.errors import UserError
from genreward_fast.goals.demo_actions import read_actions
from genreward_fast.goals.goal_files import file_sha256
from genreward_fast.goals.video_io import read_video


@dataclass(frozen=True)
class Demo:
    """One clip: a video file or a part of one.

    Attributes:
        name: its name in the set, unique there.
        path: the video file.
        captions: wordings of what it shows, at least one, none of them empty.
        start: seconds into the file at which the clip begins.
        length: frames of the clip; None for the rest of the file.
        details: what else its source says about it, as JSON.
        actions_path: the file of the actions that were taken (`demo_actions`); None if they are not known.

    Raises:
        UserError: there is no caption, or an empty one.
    """

    name: str
    path: Path
    captions: tuple[str, ...]
    start: float = 0.0
    length: int | None = None
    details: dict[str, Any] = field(default_factory=dict, repr=False)
    actions_path: Path | None = None

    def __post_init__(self) -> None:
        if not self.captions or not all(caption.strip() for caption in self.captions):
            raise UserError(f"{self.path}: its caption is empty or missing; say in words what the clip shows")

    def frames(self) -> Tensor:
        """(T, H, W, 3) uint8 RGB on the CPU, T ≥ 2.

        Raises:
            UserError: the file is missing, damaged, or too short.
        """
        return read_video(self.path, start=self.start, length=self.length)[0]

    def actions(self) -> Tensor:
        """(T - 1, A) float32 in [-1, 1]: action t was taken at frame t and led to frame t + 1.

        Raises:
            UserError: the actions are not known, or their file is missing or damaged.
        """
        if self.actions_path is None:
            raise UserError(f"{self.path}: its actions are not recorded; collect clips with them with genreward demos")
        return read_actions(self.actions_path)

    @property
    def sha256(self) -> str:
        """Of the file's bytes and the part of it, hexadecimal: the clip's identity, whatever it is called.

        Raises:
            UserError: there is no such file.
        """
        try:
            status = self.path.stat()
        except OSError:
            raise UserError(f"{self.path}: no such video file") from None
        whole = _sha256(self.path, status.st_mtime_ns, status.st_size)
        if not self.start and self.length is None:
            return whole
        return hashlib.sha256(json.dumps([whole, self.start, self.length]).encode()).hexdigest()


class DemoSet(Sequence[Demo]):
    """The clips of a folder, in a fixed order.

    Attributes:
        folder: where they are from.
        notes: what must be known about them, such as episodes that were left out.
    """

    def __init__(self, folder: Path, demos: Sequence[Demo], notes: Sequence[str] = ()) -> None:
        """
        Raises:
            UserError: there are no clips, or two of one name.
        """
        self.folder = folder
        self.notes = tuple(notes)
        self._demos = tuple(demos)
        if not self._demos:
            raise UserError(f"{folder}: holds no clips with captions")
        names = set()
        for demo in self._demos:
            if demo.name in names:
                raise UserError(f"{folder}: {demo.name} is listed twice; remove one of the lines")
            names.add(demo.name)

    def __len__(self) -> int:
        return len(self._demos)

    @overload
    def __getitem__(self, index: int) -> Demo: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Demo, ...]: ...
    def __getitem__(self, index: int | slice) -> Demo | tuple[Demo, ...]:
        return self._demos[index]

    def __iter__(self) -> Iterator[Demo]:
        return iter(self._demos)


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, changed_ns: int, size: int) -> str:
    # A LeRobot file holds hundreds of episodes: it is read once, not once for each.
    return file_sha256(path)
