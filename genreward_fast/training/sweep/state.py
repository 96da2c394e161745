"""`sweep.json` in the folder of a sweep: its grid, and how each trial has fared."""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass, field
from typing import Literal

from genreward_fast.errors import UserError
from genreward_fast.files import read_json, write_json
from genreward_fast.training.settings import structure
from genreward_fast.training.sweep.folder import SweepFolder
from genreward_fast.training.sweep.grid import Grid

FORMAT = 1
State = Literal["waiting", "running", "finished", "failed"]


@dataclass
class Record:
    """How a trial has fared. `attempts`: processes that it has had in this sweep; `reason`: why the last one failed, or
    was stopped."""

    state: State = "waiting"
    attempts: int = 0
    reason: str = ""


@dataclass
class SweepState:
    """What `sweep.json` holds. `token` tells this sweep from any other, whatever the path it is seen under."""

    grid: Grid
    trials: dict[str, Record]
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    format: int = FORMAT

    def count(self, state: State) -> int:
        return sum(record.state == state for record in self.trials.values())

    def save(self, folder: SweepFolder) -> None:
        write_json(folder.state, asdict(self))

    @staticmethod
    def load(folder: SweepFolder) -> SweepState:
        """Reads `sweep.json`.

        Raises:
            UserError: it is missing, damaged, or of another version.
        """
        if not folder.state.exists():
            raise UserError(
                f"{folder.path}: holds no sweep (no sweep.json); name the --out folder of a genreward sweep"
            )
        state = structure(read_json(folder.state), SweepState, str(folder.state))
        if state.format != FORMAT:
            raise UserError(f"{folder.state}: not a sweep of this version (format {FORMAT})")
        return state
