"""The folder of a sweep: what lies where, and when it may be used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genreward_fast.errors import UserError
from genreward_fast.training.run_folder import RunFolder


@dataclass(frozen=True)
class SweepFolder:
    """Paths inside a sweep's folder."""

    path: Path

    @property
    def state(self) -> Path:
        return self.path / "sweep.json"

    def run(self, name: str) -> RunFolder:
        return RunFolder(self.path / "runs" / name)

    def log(self, name: str) -> Path:
        """What a trial's processes have printed."""
        return self.path / "logs" / f"{name}.log"

    def require_free(self) -> None:
        """Checks that a new sweep can be made here; writes nothing.

        Raises:
            UserError: a sweep is already there, other files are, or the path is a file.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path}: is a file; name a folder with --out")
        if self.state.exists():
            raise UserError(f"{self.path}: already holds a sweep; continue it with --resume, or name another --out")
        foreign = (
            sorted(path.name for path in self.path.iterdir() if path.name != ".lock") if self.path.exists() else []
        )
        if foreign:
            raise UserError(
                f"{self.path}: is not empty and holds no sweep (it has {foreign[0]}); name another folder with --out"
            )

    def create(self) -> bool:
        """Makes the folder if it is not there; whether it was made. Raises UserError if it cannot be made."""
        return RunFolder(self.path).create()
