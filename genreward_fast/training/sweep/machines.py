"""What a sweep asks of the machines that its trials run on: those of Ray (`cluster.py`), or this one (`local.py`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from genreward_fast.training.sweep.trial import Job, Outcome

LOST = 1
"""Status of a trial whose watcher died: with its machine, or by Ray for want of memory."""


@dataclass(frozen=True)
class Resources:
    """What each trial gets: GPUs or a fraction of one, and CPU cores."""

    gpus: float
    cpus: float

    def fit(self, machine: dict[str, float]) -> int:
        """How many trials a machine with these resources runs at once."""
        fits = [int(machine.get("CPU", 0) / self.cpus + 1e-6)] if self.cpus else []
        if self.gpus >= 1:
            fits.append(int(machine.get("GPU", 0) / self.gpus + 1e-6))
        elif self.gpus > 0:
            fits.append(int(machine.get("GPU", 0)) * int(1 / self.gpus + 1e-6))
        return min(fits, default=0)


@dataclass
class Attempt:
    """A process of a trial, on its way or running."""

    job: Job
    started: bool = field(default=False, kw_only=True)


AttemptT = TypeVar("AttemptT", bound=Attempt)


class Machines(ABC, Generic[AttemptT]):
    """Where trials run. Leaving it as a context manager ends what it started."""

    def __enter__(self) -> Machines[AttemptT]:
        return self

    @abstractmethod
    def __exit__(self, *_: object) -> None: ...

    @abstractmethod
    def machines(self) -> list[dict[str, Any]]:
        """The machines that are up, each with what it has: {"Resources": {"CPU": 8.0, "GPU": 1.0}, ...}."""

    def has_gpus(self) -> bool:
        return any(machine["Resources"].get("GPU", 0) >= 1 for machine in self.machines())

    def capacity(self, resources: Resources) -> int:
        """Trials at once."""
        return sum(resources.fit(machine["Resources"]) for machine in self.machines())

    @abstractmethod
    def require_folder(self, folder: Path, token: str, resources: Resources) -> None:
        """Checks that every machine that may get a trial runs this code and sees the sweep's folder.

        Raises:
            UserError: names the machine.
        """

    @abstractmethod
    def start(self, job: Job, resources: Resources) -> AttemptT:
        """Asks for a place for the job; it begins as soon as there is one."""

    @abstractmethod
    def wait(self, attempts: Iterable[AttemptT], seconds: float) -> list[tuple[AttemptT, Outcome]]:
        """Those that end within this time, as soon as one does; says of the others whether they have started.

        Raises:
            RunFailed: the machines themselves are gone.
        """

    @abstractmethod
    def stop(self, attempt: AttemptT) -> None:
        """Asks a trial to end with a checkpoint."""

    @abstractmethod
    def kill(self, attempt: AttemptT) -> None:
        """Gives the attempt's place back; a process that is still there ends."""
