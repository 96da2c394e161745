"""Rows of the replay on disk: append-only chunk files in the safetensors format.

A chunk holds stretches of consecutive rows, one after the other, each field as one (rows, ...) tensor. It is written
once, atomically, and never changed. Which chunks count is said by the checkpoint, so a chunk written by a run that died
before its checkpoint was committed is never read.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from genreward_fast.errors import UserError
from genreward_fast.files import atomic_path

PREFIX = "replay-"
SUFFIX = ".safetensors"
FORMAT = "genreward-fast replay chunk 1"

Stretch = tuple[int, int, int]
"""(environment, first row, behind the last row), rows in absolute numbers."""


@dataclass(frozen=True)
class Chunk:
    """One file: its name in the replay's folder, and the stretches in it, in the order of their rows."""

    file: str
    stretches: tuple[Stretch, ...]

    def to_json(self) -> dict:
        return {"file": self.file, "stretches": [list(stretch) for stretch in self.stretches]}

    @staticmethod
    def from_json(value: dict) -> Chunk:
        stretches = tuple((int(env), int(start), int(stop)) for env, start, stop in value["stretches"])
        return Chunk(str(value["file"]), stretches)

    def alive(self, oldest: np.ndarray) -> bool:
        """Whether any of its rows has not been overwritten."""
        return any(stop > oldest[env] for env, _, stop in self.stretches)


def split(stretches: Iterable[Stretch], rows: int) -> Iterator[tuple[Stretch, ...]]:
    """Cuts stretches into groups of at most `rows` rows, in order."""
    group: list[Stretch] = []
    room = rows
    for env, start, stop in stretches:
        while start < stop:
            end = min(stop, start + room)
            group.append((env, start, end))
            room -= end - start
            start = end
            if room == 0:
                yield tuple(group)
                group, room = [], rows
    if group:
        yield tuple(group)


def write_chunk(folder: Path, number: int, run: str, stretches: tuple[Stretch, ...], rows: dict[str, Tensor]) -> Chunk:
    """Writes one chunk of the run named `run`; `rows` are the fields of the stretches, end to end, on the host.

    Raises:
        UserError: the file cannot be written.
    """
    chunk = Chunk(f"{PREFIX}{number:06d}{SUFFIX}", stretches)
    path = folder / chunk.file
    try:
        with atomic_path(path) as temporary:
            save_file(rows, temporary, metadata=_metadata(run, stretches))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be written ({error}); is the disk full or read-only?") from error
    return chunk


def read_chunk(
    folder: Path, chunk: Chunk, run: str, fields: dict, oldest: np.ndarray
) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
    """Yields (environment, first row, fields) for what of each stretch is not older than `oldest` (N,).

    Args:
        fields: name -> (shape of one row, dtype) that the file must have.

    Raises:
        UserError: the file is missing, damaged, or not the one that the checkpoint means.
    """
    path = folder / chunk.file
    advice = "restore it, or start again without resuming"
    if not path.is_file():
        raise UserError(f"{path}: missing, and the checkpoint needs it: {advice}")
    try:
        with safe_open(path, framework="pt") as file:
            if file.metadata() != _metadata(run, chunk.stretches):
                raise UserError(f"{path}: belongs to another run or checkpoint: {advice}")
            slices = {name: file.get_slice(name) for name in fields}
            total = sum(stop - start for _, start, stop in chunk.stretches)
            for name, (shape, _) in fields.items():
                if slices[name].get_shape() != [total, *shape]:
                    raise UserError(f"{path}: {name} has shape {slices[name].get_shape()}, not {[total, *shape]}")
            offset = 0
            for env, start, stop in chunk.stretches:
                skip = min(max(0, int(oldest[env]) - start), stop - start)
                if skip < stop - start:
                    part = slice(offset + skip, offset + stop - start)
                    yield env, start + skip, {name: value[part] for name, value in slices.items()}
                offset += stop - start
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not a whole replay chunk ({error}): {advice}") from error


def check_coverage(folder: Path, chunks: Iterable[Chunk], oldest: np.ndarray, released: np.ndarray) -> None:
    """Raises UserError unless the chunks hold every row in [oldest, released) of every environment once."""
    reached = np.array(oldest)
    for env, start, stop in sorted(stretch for chunk in chunks for stretch in chunk.stretches):
        if stop > reached[env]:
            if start > reached[env]:
                break
            reached[env] = stop
    if (reached < released).any():
        env = int(np.argmax(reached < released))
        raise UserError(
            f"{folder}: the checkpoint lists no chunk with row {reached[env]} of environment {env}; it is damaged: "
            f"start again without resuming"
        )


def remove_strays(folder: Path, keep: Iterable[str]) -> None:
    """Removes chunks that no checkpoint names, and what a crash left of a chunk being written."""
    keep = set(keep)
    for path in [*folder.glob(f"{PREFIX}*{SUFFIX}"), *folder.glob(f".{PREFIX}*{SUFFIX}")]:
        if path.name not in keep:
            remove(path)


def remove(path: Path) -> None:
    """Removes a file; one that is gone already, or cannot be removed, does no harm."""
    with contextlib.suppress(OSError):
        path.unlink()


def _metadata(run: str, stretches: tuple[Stretch, ...]) -> dict[str, str]:
    return {"format": FORMAT, "run": run, "stretches": json.dumps([list(stretch) for stretch in stretches])}
