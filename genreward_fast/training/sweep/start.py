"""What `genreward sweep` does, from its parsed options on."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genreward_fast.errors import Interrupted, UserError
from genreward_fast.training.checkpoint import RunLock
from genreward_fast.training.settings import RunConfig
from genreward_fast.training.sweep.folder import SweepFolder
from genreward_fast.training.sweep.grid import Grid, Trial, trials_of
from genreward_fast.training.sweep.places import Places
from genreward_fast.training.sweep.schedule import End, Schedule
from genreward_fast.training.sweep.state import Record, SweepState
from genreward_fast.training.sweep.table import Display
from genreward_fast.training.sweep.trial import Job


@dataclass(frozen=True)
class SweepResult:
    """How a sweep ended; `at_limit`: because its time was up."""

    folder: SweepFolder
    state: SweepState
    at_limit: bool = False

    @property
    def failed(self) -> dict[str, Record]:
        """The trials that failed for good."""
        return {name: record for name, record in self.state.trials.items() if record.state == "failed"}

    def lines(self) -> list[str]:
        """What is printed at the end."""
        finished = self.state.count("finished")
        lines = [f"{finished} of {len(self.state.trials)} trials are finished, in {self.folder.path / 'runs'}"]
        for name, record in self.failed.items():
            lines.append(f"failed: {name}: {record.reason} (see {self.folder.log(name)})")
        if self.at_limit and self.state.count("waiting"):
            lines.append(f"the --limit is reached; go on: genreward sweep --resume --out {self.folder.path}")
        elif self.failed:
            lines.append(f"try them again: genreward sweep --resume --out {self.folder.path}")
        if finished:
            lines.append(f"compare: genreward report {self.folder.path} --out {self.folder.path / 'report'}")
        return lines


def run_sweep(
    given: dict[str, Any],
    out: Path,
    *,
    settings: Callable[[Sequence[str]], RunConfig],
    places: Places,
    retries: int = 2,
    limit: float | None = None,
    resume: bool = False,
    program: Sequence[str] | None = None,
    patience: float = 5.0,
    tick: float = 1.0,
) -> SweepResult:
    """Runs the trials of a grid, or with `resume` those of the sweep in `out` that are not finished.

    Everything that can be wrong with the input is looked at before the first trial is started.

    Args:
        given: the parts of the grid that were named (`parse_grid`).
        settings: what a command line of `genreward train` asks for; raises UserError if it is bad.
        retries: how often a trial that failed is started again, from its checkpoint.
        limit: seconds after which all trials are asked to end with a checkpoint; None: until they are finished.
        program: what is started for each trial; None: `genreward train`.
        patience, tick: of the `Schedule`.

    Raises:
        UserError: bad input, or with `resume` another grid than the sweep was started with.
        Interrupted: a signal stopped the sweep, after the trials' checkpoints.
    """
    places.require_libraries()
    if limit is not None and not (limit > 0 and math.isfinite(limit)):
        raise UserError(f"--limit {limit:g}: must be a number of seconds, above 0")
    if retries < 0:
        raise UserError(f"--retries {retries}: must not be negative")
    folder = SweepFolder(out.absolute())
    if resume:
        grid = SweepState.load(folder).grid
        grid.require_same(given)
    else:
        folder.require_free()
        grid = Grid(**given)
    trials = trials_of(grid, settings)

    created = folder.create()
    with RunLock(folder.path):
        state = SweepState.load(folder) if resume else SweepState(grid, {trial.name: Record() for trial in trials})
        _take_up(state, trials, folder)
        state.save(folder)
        end = End()
        if state.count("waiting"):
            try:
                end = _run_trials(trials, folder, state, places, retries, limit, program, patience, tick)
            except UserError:  # before the first trial
                if not resume:
                    shutil.rmtree(folder.path) if created else folder.state.unlink()
                raise
    if end.signal is not None:
        raise Interrupted(
            end.signal,
            f"stopped with {state.count('finished')} of {len(trials)} trials finished; "
            f"continue with: genreward sweep --resume --out {out}",
        )
    return SweepResult(folder, state, end.at_limit)


def _run_trials(
    trials: Sequence[Trial],
    folder: SweepFolder,
    state: SweepState,
    places: Places,
    retries: int,
    limit: float | None,
    program: Sequence[str] | None,
    patience: float,
    tick: float,
) -> End:
    """Raises UserError before the first trial only."""
    with places.machines() as machines:
        resources = places.resources(machines, trials)
        machines.require_folder(folder.path, state.token, resources)
        threads, cwd = max(1, int(resources.cpus)), os.getcwd()

        def job_of(trial: Trial) -> Job:
            command = tuple(program) if program else None
            return Job(
                trial.name, trial.arguments, folder.path, state.token, cwd, resources.gpus, threads, program=command
            )

        with Display() as display:
            schedule = Schedule(
                trials,
                folder,
                state,
                machines,
                resources,
                job_of=job_of,
                retries=retries,
                limit=limit,
                display=display,
                patience=patience,
                tick=tick,
            )
            return schedule.run()


def _take_up(state: SweepState, trials: Sequence[Trial], folder: SweepFolder) -> None:
    """What a sweep that ended somehow left behind: runs that are finished stay so, all others wait for a place."""
    if set(state.trials) != {trial.name for trial in trials}:
        raise UserError(
            f"{folder.state}: does not name the trials of its own grid; it is damaged, or of another version"
        )
    for name, record in state.trials.items():
        record.state = "finished" if folder.run(name).summary.exists() else "waiting"
