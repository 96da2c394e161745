"""Sweeps of `fake_train.py`, and a Ray of two CPUs."""

import json
import sys
from pathlib import Path

import pytest

from genreward_fast.commands.train import train_settings
from genreward_fast.training.sweep.cluster import Cluster
from genreward_fast.training.sweep.folder import SweepFolder
from genreward_fast.training.sweep.grid import Grid, trials_of
from genreward_fast.training.sweep.machines import Resources
from genreward_fast.training.sweep.schedule import Schedule
from genreward_fast.training.sweep.state import Record, SweepState
from genreward_fast.training.sweep.table import Display
from genreward_fast.training.sweep.trial import Job

FAKE = Path(__file__).with_name("fake_train.py")


@pytest.fixture(scope="module")
def cluster():
    with Cluster(cpus=2, gpus=0) as cluster:
        yield cluster


@pytest.fixture
def fake_program(tmp_path):
    """The command line of a fake training with this plan: {seed: {"kill_at": step, ...}}."""

    def program(plan=None):
        path = tmp_path / "plan.json"
        path.write_text(json.dumps(plan or {}))
        return (sys.executable, str(FAKE), str(path))

    return program


@pytest.fixture
def make_job(tmp_path, fake_program):
    """A job in a sweep's folder, without a sweep."""

    def make(name="run", plan=None, arguments=("--steps", "30", "--seed", "0")):
        folder = SweepFolder(tmp_path / "sweep")
        state = SweepState(Grid(), {name: Record()})
        folder.create()
        state.save(folder)
        return Job(name, tuple(arguments), folder.path, state.token, str(tmp_path), program=fake_program(plan))

    return make


@pytest.fixture
def machines(cluster):
    """Where `make_schedule` runs its trials: on Ray, if the test's file says nothing else."""
    return cluster


@pytest.fixture
def make_schedule(tmp_path, machines, fake_program):
    """A schedule over the grid in `tmp_path / "sweep"`, of which it goes on with what is there."""

    def make(plan=None, retries=1, limit=None, **grid):
        folder = SweepFolder(tmp_path / "sweep")
        trials = trials_of(Grid(**({"flags": ("--steps", "30")} | grid)), train_settings)
        if folder.state.exists():
            state = SweepState.load(folder)
        else:
            folder.create()
            state = SweepState(Grid(), {trial.name: Record() for trial in trials})
            state.save(folder)
        program, resources = fake_program(plan), Resources(gpus=0, cpus=1)

        def job_of(trial):
            return Job(trial.name, trial.arguments, folder.path, state.token, str(tmp_path), program=program)

        return Schedule(trials, folder, state, machines, resources, job_of=job_of, retries=retries, limit=limit,
                        display=Display(), patience=0.1, tick=0.1)  # fmt: skip

    return make


@pytest.fixture
def expected_sum():
    """What a fake training of that seed that nobody interrupts comes to."""

    def total(seed, steps=30):
        value = seed + 1
        for step in range(1, steps + 1):
            value = (value * 31 + step) % 1_000_003
        return value

    return total
