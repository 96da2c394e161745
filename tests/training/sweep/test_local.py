"""Trials on this machine without Ray: killed and resumed, stopped at a limit, and which GPU each of them sees."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from genreward_fast.cli import main
from genreward_fast.commands.train import train_settings
from genreward_fast.errors import UserError
from genreward_fast.files import read_json
from genreward_fast.training.sweep import schedule as schedule_module
from genreward_fast.training.sweep.folder import SweepFolder
from genreward_fast.training.sweep.local import Local
from genreward_fast.training.sweep.machines import LOST, Resources
from genreward_fast.training.sweep.places import Places
from genreward_fast.training.sweep.progress import RunProgress
from genreward_fast.training.sweep.schedule import End
from genreward_fast.training.sweep.start import run_sweep
from genreward_fast.training.sweep.state import SweepState

GRID = {"tasks": ("reach",), "rewards": ("none",), "seeds": (0, 1, 2)}


@pytest.fixture
def machines():
    with Local(cpus=2) as local:
        yield local


@pytest.fixture
def pass_limit(monkeypatch):
    """Lets a limit of 900 seconds be over as soon as all these runs have come to a step."""

    def arrange(runs, step):
        short = [RunProgress(run) for run in runs]

        def clock():
            while short and short[-1].read().step >= step:
                short.pop()
            return time.monotonic() + (0 if short else 1000)

        monkeypatch.setattr(schedule_module, "time", SimpleNamespace(monotonic=clock, sleep=time.sleep))

    return arrange


def test_a_grid_with_a_killed_trial_ends_as_one_without(make_schedule, tmp_path, expected_sum, capsys):
    schedule = make_schedule({"0": {"kill_at": 12}, "1": {"exit": 2}}, **GRID)
    assert schedule.run() == End()
    assert [row.state for row in schedule.rows()] == ["finished", "failed", "finished"]
    for seed, began_at in ((0, [0, 10]), (2, [0])):
        summary = read_json(SweepFolder(tmp_path / "sweep").run(f"reach-dense-none-seed{seed}").summary)
        assert (summary["sum"], summary["began_at"]) == (expected_sum(seed), began_at)
    assert "reach-dense-none-seed0: killed by SIGKILL" in capsys.readouterr().err


def test_at_the_limit_all_stop_with_a_checkpoint_and_go_on_later(make_schedule, tmp_path, expected_sum, pass_limit):
    folder = SweepFolder(tmp_path / "sweep")
    pass_limit([folder.run(f"reach-dense-none-seed{seed}") for seed in (0, 1)], step=3)
    first = make_schedule({seed: {"pause": 0.3} for seed in "01"}, limit=900.0, **GRID)
    assert first.run() == End(at_limit=True)
    kept = SweepState.load(folder).trials
    assert [record.state for record in kept.values()] == ["waiting"] * 3
    assert [record.attempts for record in kept.values()] == [1, 1, 0]  # the third had no place
    assert [record.reason for record in kept.values()] == ["stopped at the --limit"] * 2 + [""]
    stopped_at = read_json(folder.run("reach-dense-none-seed0").path / "checkpoint.json")["step"]
    assert 2 < stopped_at < 30

    assert make_schedule(limit=600.0, **GRID).run() == End()
    for seed in GRID["seeds"]:
        summary = read_json(folder.run(f"reach-dense-none-seed{seed}").summary)
        assert summary["sum"] == expected_sum(seed)
        assert summary["began_at"] == ([0] if seed == 2 else [0, summary["began_at"][1]])
    assert read_json(folder.run("reach-dense-none-seed0").summary)["began_at"] == [0, stopped_at]
    assert {record.reason for record in SweepState.load(folder).trials.values()} == {""}


def finished(machines, attempts):
    """Waits for all of them; their exit codes, in the order in which they ended."""
    left, codes = list(attempts), []
    while left:
        for attempt, outcome in machines.wait(left, 30):
            left.remove(attempt)
            codes.append(outcome.status)
    return codes


def test_each_trial_sees_its_gpus(make_job):
    machines = Local(cpus=8, gpus=("2", "5"))
    job = replace(make_job(), program=("/bin/sh", "-c", "sleep 0.3; echo sees=$CUDA_VISIBLE_DEVICES"))

    def seen(gpus, count):
        resources = Resources(gpus, cpus=0.5)
        attempts = [machines.start(replace(job, name=f"{gpus:g}-{i}", gpus=gpus), resources) for i in range(count)]
        places = min(machines.capacity(resources), count)
        assert [attempt.started for attempt in attempts] == [True] * places + [False] * (count - places)
        assert finished(machines, attempts) == [0] * count
        logs = [SweepFolder(job.folder).log(attempt.job.name).read_text().splitlines() for attempt in attempts]
        return [lines[-1].removeprefix("sees=") for lines in logs]

    sixths = seen(1 / 3, 7)
    assert sixths[:6] == ["2", "5", "2", "5", "2", "5"]
    assert sixths[6] in ("2", "5")  # whichever is free first
    assert sorted(seen(1.0, 2)) == ["2", "5"]
    assert seen(2.0, 2) == ["2,5", "2,5"]
    assert seen(0.0, 1) == [""]


def test_no_more_trials_than_cores_and_one_that_was_taken_back_never_starts(make_job):
    machines, resources = Local(cpus=2), Resources(0, 2)
    job = replace(make_job(), program=("/bin/sleep", "60"))
    first, second, third = (machines.start(replace(job, name=name), resources) for name in "abc")
    assert [attempt.started for attempt in (first, second, third)] == [True, False, False]
    machines.kill(second)
    machines.stop(first)
    ((ended, outcome),) = machines.wait([first], 30)
    assert ended is first
    assert outcome.stopped
    assert (second.started, third.started) == (False, True)
    machines.kill(third)
    assert not SweepFolder(job.folder).log("b").exists()


def test_a_watcher_that_fails_is_a_lost_attempt(make_job):
    machines = Local(cpus=1)
    attempt = machines.start(replace(make_job(), token="of another sweep"), Resources(0, 1))
    ((_, outcome),) = machines.wait([attempt], 30)
    assert outcome.status == LOST
    assert "does not see" in outcome.reason


@pytest.mark.parametrize(
    ("visible", "there", "asked", "expected"),
    [(None, 3, None, "0,1,2"), ("4, 6", 2, None, "4,6"), ("4,6", 2, 1, "4"), (None, 2, 0, ""), ("", 0, None, "")],
)
def test_the_gpus_of_this_machine(visible, there, asked, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    machines = Places(local=True, gpus=asked, gpus_per_trial=1.0 if expected else 0.0, cpus_per_trial=0.01).machines()
    assert isinstance(machines, Local)
    gpus = [name for name in expected.split(",") if name]
    assert machines.machines()[0]["Resources"]["GPU"] == len(gpus)
    trials = [SimpleNamespace(config=SimpleNamespace(train=SimpleNamespace(device="auto")))]
    if gpus:
        resources = Places(gpus_per_trial=1.0, cpus_per_trial=0.01).resources(machines, trials)
        assert machines.capacity(resources) == len(gpus)


def test_local_and_ray_exclude_each_other():
    with pytest.raises(UserError, match="--local together with --ray"):
        Places(ray="auto", local=True)


SMALL = ["--size", "tiny", "--dtype", "float32", "--device", "cpu", "--envs", "1", "--batch-size", "2"]
SMALL += ["--batch-length", "4", "--episode-length", "16", "--eval-episodes", "2", "--replay-capacity", "1000"]
SMALL += ["--prefill", "20", "--train-ratio", "1", "--steps", "60"]


def test_the_command_trains_without_ray_and_rich(tmp_path):
    out = tmp_path / "sweep"
    hide = "import sys; sys.modules['ray'] = sys.modules['rich'] = None; from genreward_fast.cli import main; "
    arguments = ["sweep", "--tasks", "reach", "--rewards", "none", "--local", "--gpus", "0", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-c", f"{hide} sys.exit(main(sys.argv[1:]))", *arguments, "--", *SMALL],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 of 1 trials are finished" in done.stdout
    assert "reach-dense-none-seed0: started" in done.stderr.splitlines()
    assert json.loads(SweepFolder(out).run("reach-dense-none-seed0").summary.read_text())["env_steps"] == 60


@pytest.mark.slow
def test_real_trials_stop_at_the_limit_and_go_on(tmp_path, capsys, pass_limit):
    out = tmp_path / "sweep"
    folder, names = SweepFolder(out), [f"reach-dense-none-seed{seed}" for seed in (0, 1)]
    grid = ["--tasks", "reach", "--rewards", "none", "--seeds", "0,1", "--cpus-per-trial", "1"]
    local = ["--local", "--gpus", "0", "--out", str(out)]
    pass_limit([folder.run(name) for name in names], step=32)
    assert main(["sweep", *grid, *local, "--limit", "900", "--", *SMALL[:-1], "400"]) == 0
    assert "0 of 2 trials are finished" in capsys.readouterr().out
    for name, record in SweepState.load(folder).trials.items():
        assert (record.state, record.reason) == ("waiting", "stopped at the --limit")
        assert folder.run(name).checkpoint.exists()

    assert main(["sweep", "--resume", *local]) == 0
    for name in names:
        assert read_json(folder.run(name).summary)["env_steps"] == 400
        log = folder.log(name).read_text().splitlines()
        (resumed,) = [line for line in log if line.startswith("resuming at step ")]
        assert int(resumed.split()[3].rstrip(":")) >= 32


@pytest.mark.parametrize("limit", ["0", "-1", "nan"])
def test_bad_limits(limit, tmp_path, capsys):
    assert main(["sweep", "--local", "--limit", limit, "--out", str(tmp_path / "sweep")]) == 2
    assert f"--limit {limit}: must be a number of seconds" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_said_at_the_limit(tmp_path, fake_program):
    out = tmp_path / "sweep"
    given = {"tasks": ("reach",), "rewards": ("none",), "flags": ("--steps", "9999")}
    result = run_sweep(given, out, settings=train_settings, places=Places(local=True, gpus=0), limit=2.0,
                       program=fake_program({"0": {"pause": 0.1}}), tick=0.1)  # fmt: skip
    assert result.lines() == [
        f"0 of 1 trials are finished, in {out / 'runs'}",
        f"the --limit is reached; go on: genreward sweep --resume --out {out}",
    ]
    result.state.trials["reach-dense-none-seed0"].state = "finished"  # the last ones may end while they are stopped
    assert not any("--limit" in line for line in result.lines())
