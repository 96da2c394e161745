"""This machine alone, without Ray: each trial is a process of its own, watched by a thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from genreward_fast.errors import first_line
from genreward_fast.training.sweep.machines import LOST, Attempt, Machines, Resources
from genreward_fast.training.sweep.trial import Job, Outcome, TrialProcess

_ROUNDING = 1e-6  # three thirds of a GPU are one


@dataclass(eq=False)
class LocalAttempt(Attempt):
    """`gpus`: of them it has `share` each, once it has started."""

    resources: Resources
    process: TrialProcess = field(default_factory=TrialProcess)
    gpus: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        return min(self.resources.gpus, 1.0)


class Local(Machines[LocalAttempt]):
    """Places on this machine, given in the order in which they are asked for.

    Args:
        cpus: cores that may be used.
        gpus: what CUDA_VISIBLE_DEVICES calls the GPUs that may be used.
    """

    def __init__(self, cpus: int, gpus: Sequence[str] = ()):
        self._cpus, self._gpus = cpus, tuple(gpus)
        self._attempts: list[LocalAttempt] = []
        self._ended: queue.SimpleQueue[tuple[LocalAttempt, Outcome]] = queue.SimpleQueue()

    def __exit__(self, *_: object) -> None:
        for attempt in list(self._attempts):
            self.kill(attempt)

    def machines(self) -> list[dict[str, Any]]:
        return [{"Resources": {"CPU": float(self._cpus), "GPU": float(len(self._gpus))}}]

    def require_folder(self, folder: Path, token: str, resources: Resources) -> None:
        """Nothing to check: it is this machine that made the folder."""

    def start(self, job: Job, resources: Resources) -> LocalAttempt:
        attempt = LocalAttempt(job, resources)
        self._attempts.append(attempt)
        self._give_places()
        return attempt

    def wait(self, attempts: Iterable[LocalAttempt], seconds: float) -> list[tuple[LocalAttempt, Outcome]]:
        asked, deadline = list(attempts), time.monotonic() + seconds
        ended: list[tuple[LocalAttempt, Outcome]] = []
        while not ended and (left := deadline - time.monotonic()) > 0:
            try:
                attempt, outcome = self._ended.get(timeout=left)
            except queue.Empty:
                break
            if attempt in self._attempts:
                self._attempts.remove(attempt)
            if attempt in asked:  # not one that was killed meanwhile
                ended.append((attempt, outcome))
        self._give_places()
        return ended

    def stop(self, attempt: LocalAttempt) -> None:
        attempt.process.stop()

    def kill(self, attempt: LocalAttempt) -> None:
        """As `Machines.kill`: the process gets SIGTERM, and writes its checkpoint if it is left the time."""
        attempt.process.stop()
        if attempt in self._attempts:
            self._attempts.remove(attempt)

    def _give_places(self) -> None:
        for attempt in self._attempts:
            if not attempt.started and not self._give_place(attempt):
                return  # those behind it wait, too

    def _give_place(self, attempt: LocalAttempt) -> bool:
        """Starts it if there is room for it; whether there was."""
        running = [other for other in self._attempts if other.started]
        if sum(other.resources.cpus for other in running) + attempt.resources.cpus > self._cpus + _ROUNDING:
            return False
        used = {gpu: sum(other.share for other in running if gpu in other.gpus) for gpu in self._gpus}
        free = [gpu for gpu in self._gpus if used[gpu] + attempt.share <= 1 + _ROUNDING]
        count = int(max(attempt.resources.gpus, 1)) if attempt.share else 0
        if len(free) < count:
            return False
        attempt.gpus = tuple(sorted(free, key=used.__getitem__)[:count])  # the least used ones
        attempt.started = True
        if count:
            attempt.job = replace(attempt.job, visible_gpus=",".join(attempt.gpus))
        # The process gets SIGTERM when the thread that started it ends, so also if this process is killed.
        threading.Thread(target=self._watch, args=(attempt,), daemon=True).start()
        return True

    def _watch(self, attempt: LocalAttempt) -> None:
        try:
            outcome = attempt.process.run(attempt.job)
        except Exception as error:  # a full disk, for example: the trial is tried again, the sweep goes on
            outcome = Outcome(LOST, first_line(error))
        self._ended.put((attempt, outcome))
