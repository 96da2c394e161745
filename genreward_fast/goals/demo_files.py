"""The folder that `genreward demos` writes.

    DIR/demos.json                   what all clips share: camera, size, rendering, fps, seed
    DIR/demos.jsonl                  one line a clip
    DIR/clips/TASK-0000.mp4          the clips, H.264
    DIR/clips/TASK-0000.safetensors  "action", (frames - 1, 4) float32: action t led from frame t to frame t + 1

A line of `demos.jsonl`:

    file          "clips/pick-place-0000.mp4", relative to the folder
    actions       "clips/pick-place-0000.safetensors"; not in sets from before actions were recorded
    captions      several wordings of the task
    task          "pick-place"
    number        of the clip among its task's, from 0
    fps, frames   of the file; the last frame is the first that counts as solved
    size          side of the square frames in pixels
    camera        Meta-World's name for it
    seed          of the episode, 64 bits: the same seed gives the same episode
    success_step  the step that solved the task; it led to frame `success_step + 1`
    failed_starts how many starts of this clip were given up before, because the expert failed from them
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from genreward_fast.envs.tasks import TASKS
from genreward_fast.errors import UserError
from genreward_fast.files import atomic_path, read_json, write_json
from genreward_fast.goals.demo_set import Demo, DemoSet

SETTINGS = "demos.json"
LINES = "demos.jsonl"
CLIPS = "clips"

_FORMAT = {"format": "genreward demonstrations", "version": 1}


def start(folder: Path, settings: Mapping[str, Any], *, resume: bool) -> list[dict[str, Any]]:
    """Opens a folder for more clips.

    Args:
        settings: what all clips share, as JSON.
        resume: the folder may hold clips made with the same settings.

    Returns:
        The lines of the clips that are there already. A line that a crash cut short, or a file of which is gone, is not
        among them, and no longer in the file.

    Raises:
        UserError: the folder holds something else, clips although `resume` is false, or clips of other settings.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; choose another folder for the demonstrations")
    found = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if found and SETTINGS not in found:
        raise UserError(f"{folder}: holds {found[0]} but no demonstrations; choose another folder for them")
    if not found:
        write_json(folder / SETTINGS, {**_FORMAT, **settings})
        return []
    if not resume:
        raise UserError(f"{folder}: already holds demonstrations; choose another folder, or go on with --resume")
    for name, value in settings.items():
        there = read_settings(folder).get(name)
        if there != value:
            raise UserError(f"{folder}: was begun with {name} {there}, not {value}; go on with that, or choose another")
    path = folder / LINES
    text = path.read_bytes().decode(errors="replace") if path.exists() else ""
    whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    lines = [line for line in _parsed(path, whole) if all((folder / name).is_file() for name in _files(line))]
    write(folder, lines)
    return lines


def append(folder: Path, line: Mapping[str, Any]) -> None:
    """Adds a clip's line, after its file was written. The line is on the disk when this returns."""
    with open(folder / LINES, "a") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def write(folder: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Replaces all lines, atomically."""
    with atomic_path(folder / LINES) as path:
        path.write_text("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))


def read_settings(folder: Path) -> dict[str, Any]:
    """What all clips share.

    Raises:
        UserError: the file is missing, damaged, or of something else.
    """
    path = folder / SETTINGS
    settings = read_json(path)
    if not isinstance(settings, dict) or any(settings.get(key) != value for key, value in _FORMAT.items()):
        raise UserError(f"{path}: does not describe demonstrations of version {_FORMAT['version']}")
    return settings


def read(folder: Path) -> DemoSet:
    """The clips of such a folder, in the order of its lines.

    Raises:
        UserError: a file is missing, or a line is damaged.
    """
    rendering = read_settings(folder).get("rendering")
    path = folder / LINES
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: is missing or damaged; run genreward demos with --resume") from None
    demos = []
    for line in _parsed(path, text.splitlines()):
        clip = folder / line["file"]
        if not clip.is_file():
            raise UserError(f"{clip}: is missing, but {path} lists it; run genreward demos with --resume")
        actions = folder / line["actions"] if "actions" in line else None
        details = {"rendering": rendering} | line
        demos.append(Demo(line["file"], clip, tuple(line["captions"]), details=details, actions_path=actions))
    return DemoSet(folder, demos)


def _parsed(path: Path, lines: Iterable[str]) -> list[dict[str, Any]]:
    parsed = []
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
            good = isinstance(line["file"], str) and all(isinstance(caption, str) for caption in line["captions"])
            good = good and line["task"] in TASKS and isinstance(line["number"], int)
            # Names that lead out of the folder are refused.
            if not good or any(Path(name).is_absolute() or ".." in Path(name).parts for name in _files(line)):
                raise ValueError
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{path}, line {number}: is not a clip's line; remove it, or make the set again") from None
        parsed.append(line)
    return parsed


def _files(line: Mapping[str, Any]) -> list[str]:
    """The names of a clip's files."""
    return [line[key] for key in ("file", "actions") if key in line]
