"""Where a run's numbers go: a JSONL file, TensorBoard, and a line on the terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from genreward_fast.files import atomic_path

NAME = "metrics.jsonl"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of `folder/metrics.jsonl`, in order. A line that a killed process left half-written is skipped."""
    path = folder / NAME
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


class Logger:
    """Writes records of {name: number}, each with the environment step that it belongs to."""

    def __init__(self, folder: Path, step: int = 0, notes: Sequence[str] = ()):
        """
        Args:
            step: where the run goes on. Records after it, left by a process that was killed, come again: they go.
            notes: what everybody who sees these numbers must know; written once, at the start.
        """
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._path = folder / NAME
        kept = [record for record in read_metrics(folder) if record["step"] <= step]
        if step == 0:
            kept = [{"step": 0, "notes": list(notes)}] if notes else []
        with atomic_path(self._path) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
        self._file = open(self._path, "a")  # noqa: SIM115 - open as long as the run
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step)
        for note in notes:
            self._board.add_text("notes", note, step)

    def write(self, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


class Progress:
    """One line with the rate and the time left: rewritten in place on a terminal, every half minute elsewhere."""

    def __init__(self, total: int, done: int = 0, stream: TextIO | None = None):
        self.total = total
        self._first = done
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._started = time.monotonic()
        self._shown = 0.0
        self._recent = (self._started, done)
        self._width = 0

    def show(self, done: int, text: str = "", force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._shown < (0.5 if self._terminal else 30.0):
            return
        self._shown = now
        then, before = self._recent
        if now - then > 20:  # the rate is that of the last 20 to 40 seconds
            self._recent = (now, done)
        rate = (done - before) / max(now - then, 1e-9)
        left = duration(max(self.total - done, 0) / rate) if rate > 0 else "?"
        line = f"step {done}/{self.total} ({100 * done / self.total:.0f}%)  {rate:.1f} steps/s  {left} left  {text}"
        if self._terminal:
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def restart(self, done: int) -> None:
        """Measures the rate anew: what has happened since the last line were no steps."""
        self._recent = (time.monotonic(), done)

    def end(self) -> None:
        """Ends the line, so that what is printed next starts on its own."""
        if self._terminal and self._width:
            self._stream.write("\n")
            self._width = 0


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    whole = int(seconds + 0.5)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
