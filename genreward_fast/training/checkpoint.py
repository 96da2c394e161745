"""The checkpoint file: written whole or not at all, read without unpickling objects."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genreward_fast.errors import UserError, first_line
from genreward_fast.files import atomic_path

if TYPE_CHECKING:  # it takes seconds to import, and who only looks at a run folder does without
    import torch

FORMAT = 1
NAME = "checkpoint.pt"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Writes `folder/checkpoint.pt` to a temporary name and renames it."""
    import torch

    with atomic_path(folder / NAME) as temporary:
        torch.save({"format": FORMAT, **state}, temporary)


def load_checkpoint(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads `folder/checkpoint.pt` with `weights_only=True`.

    Raises:
        UserError: it is missing, cut off, damaged, or of another format.
    """
    import torch

    path = Path(folder) / NAME
    if not path.is_file():
        raise UserError(f"{path}: no checkpoint yet; a run writes its first one after --checkpoint-minutes")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, KeyError ... for damaged files
        raise UserError(
            f"{path}: damaged, cannot be read ({first_line(error)[:120]}); restore it from a copy or start anew"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of this version (format {FORMAT})")
    return state


class RunLock:
    """Keeps two processes from training in one folder; the system releases it however the process ends.

    Raises:
        UserError: another process has it, or the folder cannot be written.
    """

    def __init__(self, folder: Path):
        try:
            self._file = open(folder / ".lock", "w")  # noqa: SIM115 - held as long as the run
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror}); name another folder with --out") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UserError(f"{folder}: another process is training in this folder; wait for it or use --out") from None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
