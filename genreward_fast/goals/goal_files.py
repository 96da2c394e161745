"""A goal's folder: written as a whole, and read back only if every byte of it is as it was written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from genreward_fast.errors import UserError
from genreward_fast.files import atomic_path, read_json, write_json
from genreward_fast.goals.contact_sheet import contact_sheet
from genreward_fast.goals.video_io import write_video

RECORD = "goal.json"
FRAMES = "frames.safetensors"
PREVIEW = "goal.mp4"
SHEET = "contact_sheet.png"
FILES = frozenset({RECORD, FRAMES, PREVIEW, SHEET})

_FORMAT = {"format": "genreward goal", "version": 1}
_AGAIN = "make it again with genreward goal"


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(folder: Path, record: dict[str, Any], tensors: dict[str, Tensor], *, overwrite: bool) -> Path:
    """Writes the folder beside its place and renames it.

    Args:
        record: what goes into goal.json: text, frame_index, fps, shape, provenance.
        tensors: what goes into frames.safetensors: `video`, and optionally scores and embeddings.

    Raises:
        UserError: the place is taken.
    """
    _check_free(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with atomic_path(temporary / FRAMES) as path:
            save_file(tensors, path)
        write_video(temporary / PREVIEW, tensors["video"], record["fps"])
        note = record["provenance"].get("note", "")
        with atomic_path(temporary / SHEET) as path:
            contact_sheet(
                tensors["video"], record["frame_index"], tensors.get("scores"), title=record["text"], note=note
            ).save(path, format="PNG")
        whole = _FORMAT | record | {"files": {name: file_sha256(temporary / name) for name in (FRAMES, PREVIEW, SHEET)}}
        write_json(temporary / RECORD, whole | {"sha256": _digest(whole)})
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)  # mkdtemp makes folders that only their owner can read
        _swap(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The record (without checksums) and the tensors that `write` was given.

    Raises:
        UserError: no such folder, or a file is missing, foreign or altered.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such goal folder; make one with genreward goal")
    found = {path.name for path in folder.iterdir()}
    for name in sorted(FILES - found):
        raise UserError(f"{folder}: lacks {name}; {_AGAIN}")
    for name in sorted(found - FILES):
        raise UserError(f"{folder / name}: does not belong into a goal's folder; move it away")
    record = read_json(folder / RECORD)
    if not isinstance(record, dict) or any(record.get(key) != value for key, value in _FORMAT.items()):
        raise UserError(f"{folder / RECORD}: is not the record of a goal of version {_FORMAT['version']}; {_AGAIN}")
    if record.pop("sha256", None) != _digest(record):
        raise UserError(f"{folder / RECORD}: has been altered since it was written; {_AGAIN}")
    digests = record.pop("files", {})
    for name in sorted(FILES - {RECORD}):
        if file_sha256(folder / name) != digests.get(name):
            raise UserError(f"{folder / name}: has been altered since it was written; {_AGAIN}")
    try:
        tensors = load_file(folder / FRAMES)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / FRAMES}: cannot be read ({error}); {_AGAIN}") from error
    return {key: value for key, value in record.items() if key not in _FORMAT}, tensors


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _check_free(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; choose another folder for the goal")
    found = {path.name for path in folder.iterdir()}
    if not found:
        return
    # Whatever else lies there is never deleted, overwrite or not.
    if RECORD not in found or found - FILES:
        raise UserError(f"{folder}: holds other files; choose another folder for the goal")
    if not overwrite:
        raise UserError(f"{folder}: already holds a goal; choose another folder, or --overwrite it")


def _swap(new: Path, folder: Path) -> None:
    if not folder.exists():
        os.replace(new, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    os.replace(folder, old)
    try:
        os.replace(new, folder)
    except OSError:
        os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
