"""The run folder: what lies where, and when a folder may be used."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from genreward_fast.errors import UserError
from genreward_fast.training import checkpoint, logger

_LEFTOVERS = (".goal-*", ".config-*", ".checkpoint-*")
"""Names under which a process that was killed can leave something half-written."""


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder. A run begins to exist with `config.json`, the last file that starting one writes."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def goal(self) -> Path:
        return self.path / "goal"

    @property
    def replay(self) -> Path:
        return self.path / "replay"

    @property
    def curves(self) -> Path:
        return self.path / "curves.png"

    @property
    def video(self) -> Path:
        return self.path / "evaluation.mp4"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def metrics(self) -> Path:
        return self.path / logger.NAME

    @property
    def checkpoint(self) -> Path:
        return self.path / checkpoint.NAME

    def holds_a_run(self) -> bool:
        return self.config.exists()

    def require_free(self) -> None:
        """Checks that a new run can be made here; writes nothing.

        Raises:
            UserError: a run is already there, other files are, or the path is a file.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path}: is a file; name a folder with --out")
        if self.holds_a_run():
            raise UserError(f"{self.path}: already holds a run; continue it with --resume, or name another --out")
        ignored = {self.path / ".lock", *self._leftovers()}
        foreign = sorted(p.name for p in self.path.iterdir() if p not in ignored) if self.path.exists() else []
        if foreign:
            raise UserError(
                f"{self.path}: is not empty and holds no run (it has {foreign[0]}); name another folder with --out"
            )

    def require_run(self) -> None:
        """Raises UserError unless a run is there."""
        if not self.holds_a_run():
            raise UserError(f"{self.path}: holds no run (no config.json); name the --out folder of a genreward train")

    def create(self) -> bool:
        """Makes the folder if it is not there; whether it was made.

        Raises:
            UserError: it cannot be made.
        """
        existed = self.path.is_dir()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be made ({error.strerror}); name another folder with --out") from None
        return not existed

    def remove_leftovers(self) -> None:
        """Removes what killed processes left half-written. Only for the process that holds the folder's lock."""
        for path in self._leftovers():
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def remove_run(self) -> None:
        """Removes the files with which a run was begun, when it turns out that it cannot start."""
        self.config.unlink(missing_ok=True)
        shutil.rmtree(self.goal, ignore_errors=True)

    def _leftovers(self) -> list[Path]:
        return [path for pattern in _LEFTOVERS for path in self.path.glob(pattern)]
