"""How far a trial's run has come, out of the files that it writes."""

from __future__ import annotations

import json
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from genreward_fast.errors import UserError
from genreward_fast.files import read_json
from genreward_fast.training.run_folder import RunFolder

EPISODES = 20
"""Episodes that the shown return and success are the means of, as in the progress line of training."""


@dataclass(frozen=True)
class Reading:
    """What is known about a run at a moment; None where nothing is.

    Attributes:
        step: environment steps done.
        rate: steps per second, of this process.
        episode_return, success: means of the last training episodes; of a finished run, of its last evaluation.
    """

    step: int = 0
    rate: float | None = None
    episode_return: float | None = None
    success: float | None = None


class RunProgress:
    """Follows one run. Each reading takes what has been appended since the one before."""

    def __init__(self, folder: RunFolder):
        self._folder = folder
        self._file: tuple[int, int] | None = None  # inode, and how much of it has been read
        self._episodes: deque[tuple[float, float]] = deque(maxlen=EPISODES)
        self._step = 0
        self._first: tuple[float, int] | None = None

    def restart(self) -> None:
        """A new process goes on with the run: the rate is measured anew."""
        self._first = None

    def read(self) -> Reading:
        """The run as it is now. A line that is being written waits for the next reading."""
        for line in self._new_lines(self._folder.metrics):
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            self._step = record.get("step", self._step)
            if "episode/return" in record:
                self._episodes.append((record["episode/return"], record["episode/success"]))
        now = time.monotonic()
        if self._first is None and self._step:
            self._first = (now, self._step)
        rate = None
        if self._first is not None and self._step > self._first[1]:
            rate = (self._step - self._first[1]) / (now - self._first[0])
        if (finished := self._finished()) is not None:
            return finished
        if not self._episodes:
            return Reading(self._step, rate)
        returns, successes = zip(*self._episodes)
        return Reading(self._step, rate, sum(returns) / len(returns), sum(successes) / len(successes))

    def _finished(self) -> Reading | None:
        if not self._folder.summary.exists():
            return None
        try:
            summary = read_json(self._folder.summary)
            evaluation = summary["evaluation"]
            return Reading(
                summary["env_steps"], summary["steps_per_second"], evaluation["return_mean"], evaluation["success"]
            )
        except (UserError, KeyError, TypeError):
            return None

    def _new_lines(self, path: Path) -> list[bytes]:
        try:
            status = path.stat()
            if self._file is None or self._file[0] != status.st_ino or status.st_size < self._file[1]:
                self._file = (status.st_ino, 0)  # a resumed run writes the file anew
                self._episodes.clear()
                self._step = 0
            with open(path, "rb") as file:
                file.seek(self._file[1])
                text = file.read()
        except OSError:
            return []
        whole = text.rfind(b"\n") + 1
        self._file = (self._file[0], self._file[1] + whole)
        return text[:whole].splitlines()
