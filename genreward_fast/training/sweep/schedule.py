"""Which trial runs when: as many as there are places, each tried again from its checkpoint until it is done."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from genreward_fast.training.sweep.folder import SweepFolder
from genreward_fast.training.sweep.grid import Trial
from genreward_fast.training.sweep.machines import Attempt, Machines, Resources
from genreward_fast.training.sweep.progress import Reading, RunProgress
from genreward_fast.training.sweep.state import Record, State, SweepState
from genreward_fast.training.sweep.table import Display, Row
from genreward_fast.training.sweep.trial import Job, Outcome

_STOP_SECONDS = 300.0
"""For all trials to write their checkpoints."""


@dataclass
class _Tracked:
    """A trial while the sweep goes on. `failures`: of this sweep's process; `not_before`: of its next attempt;
    `resumes`: whether the attempt found a run to go on with."""

    trial: Trial
    record: Record
    progress: RunProgress
    failures: int = 0
    not_before: float = 0.0
    attempt: Attempt | None = None
    resumes: bool = False
    last: Reading = field(default_factory=Reading)


@dataclass(frozen=True)
class End:
    """Why a schedule has ended: by a signal, because its time was up, or else because nothing is left to do."""

    signal: int | None = None
    at_limit: bool = False


class Schedule:
    """Runs the trials of a sweep that are not finished.

    Args:
        job_of: what to start for a trial.
        retries: how often a trial that failed is started again.
        limit: seconds until all trials are asked to end with a checkpoint; None: as long as they take.
        patience: seconds until a trial that failed is started again; they double each time.
        tick: seconds between two looks at everything.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        folder: SweepFolder,
        state: SweepState,
        machines: Machines,
        resources: Resources,
        *,
        job_of: Callable[[Trial], Job],
        retries: int,
        limit: float | None = None,
        display: Display,
        patience: float = 5.0,
        tick: float = 1.0,
    ):
        self._folder, self._state = folder, state
        self._machines, self._resources = machines, resources
        self._job_of, self._retries = job_of, retries
        self._display, self._patience, self._tick = display, patience, tick
        self._tracked = [_Tracked(t, state.trials[t.name], RunProgress(folder.run(t.name))) for t in trials]
        self._signals: list[int] = []
        self._deadline = math.inf if limit is None else time.monotonic() + limit
        self._at_limit = False
        self._stop_deadline = math.inf

    def run(self) -> End:
        """Returns when nothing is left to do, or when all trials have stopped after a signal or at the limit.

        After a second signal, or one more after the limit, the trials are no longer waited for.
        """
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while self._running() or (self._waiting() and not self._is_stopping()):
                if not self._is_stopping():
                    self._fill()
                elif self._stop_deadline == math.inf:
                    self._begin_stopping()
                elif len(self._signals) + self._at_limit > 1 or time.monotonic() > self._stop_deadline:
                    break
                self._collect()
                self._display.update(self.rows(), self._machines.capacity(self._resources))
        finally:
            for tracked in self._running():
                assert tracked.attempt is not None
                self._set(tracked, "waiting")
                self._machines.kill(tracked.attempt)
            for number, handler in previous.items():
                signal.signal(number, handler)
        return End(self._signals[0] if self._signals else None, self._at_limit)

    def rows(self) -> list[Row]:
        """All trials as they are now, in the grid's order."""
        rows = []
        for tracked in self._tracked:
            trial, state = tracked.trial, str(tracked.record.state)
            if tracked.attempt is not None or tracked.last == Reading():
                tracked.last = tracked.progress.read()
            if state == "running" and self._stop_deadline < math.inf:
                state = "stopping"
            elif state == "waiting" and tracked.failures:
                state = "retrying"
            rows.append(
                Row(trial.name, trial.task, trial.env_reward, trial.reward, trial.seed, state,
                    trial.config.train.steps, tracked.last)
            )  # fmt: skip
        return rows

    def _is_stopping(self) -> bool:
        if not self._signals and time.monotonic() >= self._deadline:
            self._at_limit = True
        return self._at_limit or bool(self._signals)

    def _running(self) -> list[_Tracked]:
        return [tracked for tracked in self._tracked if tracked.attempt is not None]

    def _waiting(self) -> list[_Tracked]:
        return [tracked for tracked in self._tracked if tracked.attempt is None and tracked.record.state == "waiting"]

    def _fill(self) -> None:
        """Gives free places to trials that wait; one more than there are asks Ray for a machine, if it can add one."""
        places = self._machines.capacity(self._resources) + 1 - len(self._running())
        due = [tracked for tracked in self._waiting() if time.monotonic() >= tracked.not_before]
        for tracked in due[: max(places, 0)]:
            tracked.attempt = self._machines.start(self._job_of(tracked.trial), self._resources)
            tracked.resumes = self._folder.run(tracked.trial.name).holds_a_run()
            tracked.progress.restart()

    def _collect(self) -> None:
        running = {tracked.trial.name: tracked for tracked in self._running()}
        attempts = [tracked.attempt for tracked in running.values() if tracked.attempt is not None]
        if not attempts:
            time.sleep(self._tick)
            return
        ended = self._machines.wait(attempts, self._tick)
        for tracked in running.values():
            if tracked.attempt is not None and tracked.attempt.started and tracked.record.state == "waiting":
                tracked.record.attempts += 1
                self._set(tracked, "running")
                self._display.say(f"{tracked.trial.name}: {'resumed' if tracked.resumes else 'started'}")
        for attempt, outcome in ended:
            self._end(running[attempt.job.name], outcome)

    def _end(self, tracked: _Tracked, outcome: Outcome) -> None:
        tracked.last, tracked.attempt = tracked.progress.read(), None
        name, record = tracked.trial.name, tracked.record
        if outcome.finished:
            record.reason = ""
            self._set(tracked, "finished")
            self._display.say(f"{name}: finished")
            return
        if self._stop_deadline < math.inf and not outcome.hopeless:  # it was asked to end
            how = "stopped at the --limit" if self._at_limit else "stopped by a signal"
            record.reason = how if outcome.stopped else outcome.reason
            self._set(tracked, "waiting")
            return
        tracked.failures += 1
        record.reason = outcome.reason
        if outcome.hopeless or tracked.failures > self._retries:
            self._set(tracked, "failed")
            self._display.say(f"{name}: failed: {outcome.reason} (see {self._folder.log(name)})")
            return
        tracked.not_before = time.monotonic() + self._patience * 2 ** (tracked.failures - 1)
        self._set(tracked, "waiting")
        self._display.say(f"{name}: {outcome.reason}; retry {tracked.failures} of {self._retries} follows")

    def _set(self, tracked: _Tracked, state: State) -> None:
        tracked.record.state = state
        self._state.save(self._folder)

    def _begin_stopping(self) -> None:
        self._stop_deadline = time.monotonic() + _STOP_SECONDS
        self._display.say(
            "the time is up: every trial writes a checkpoint; Ctrl-C to stop without"
            if self._at_limit
            else "stopping: every trial writes a checkpoint; once more to stop without"
        )
        for tracked in self._running():
            assert tracked.attempt is not None
            if tracked.attempt.started:
                self._machines.stop(tracked.attempt)
            else:
                self._machines.kill(tracked.attempt)
                tracked.attempt = None

    def _on_signal(self, number: int, _frame: object) -> None:
        self._signals.append(number)
