"""The run folder: what lies where, and when a folder may be used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genreward_fast.errors import UserError
from genreward_fast.training import checkpoint, logger


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder."""

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
        foreign = sorted(p.name for p in self.path.iterdir() if p.name != ".lock") if self.path.exists() else []
        if foreign:
            raise UserError(
                f"{self.path}: is not empty and holds no run (it has {foreign[0]}); name another folder with --out"
            )

    def require_run(self) -> None:
        """Raises UserError unless a run is there."""
        if not self.holds_a_run():
            raise UserError(f"{self.path}: holds no run (no config.json); name the --out folder of a genreward train")
