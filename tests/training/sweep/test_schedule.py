"""Trials on a local Ray with two CPUs: killed and resumed, failed for good, stopped and gone on with."""

import os
import signal
import threading

import pytest

from genreward_fast.errors import UserError
from genreward_fast.files import read_json
from genreward_fast.training.sweep.folder import SweepFolder
from genreward_fast.training.sweep.machines import Resources
from genreward_fast.training.sweep.progress import RunProgress
from genreward_fast.training.sweep.schedule import End

GRID = {"tasks": ("reach", "push"), "rewards": ("none",), "seeds": (0, 1)}


def summaries(schedule, folder):
    return {row.name: read_json(SweepFolder(folder).run(row.name).summary) for row in schedule.rows()}


def when(condition, action):
    """Does something beside the schedule as soon as a condition holds."""
    done = threading.Event()

    def watch():
        while not done.wait(0.05):
            if condition():
                action()
                return

    threading.Thread(target=watch, daemon=True).start()
    return done


def test_a_grid_with_killed_trials_ends_as_one_without(make_schedule, tmp_path, expected_sum, capsys):
    schedule = make_schedule({"0": {"kill_at": 12}}, **GRID)
    assert schedule.run() == End()
    assert [row.state for row in schedule.rows()] == ["finished"] * 4
    for name, summary in summaries(schedule, tmp_path / "sweep").items():
        seed = int(name[-1])
        assert summary["sum"] == expected_sum(seed)
        assert summary["began_at"] == ([0, 10] if seed == 0 else [0])
    kept = read_json(tmp_path / "sweep" / "sweep.json")["trials"]
    assert {name: (entry["state"], entry["attempts"]) for name, entry in kept.items()} == {
        name: ("finished", 2 if name.endswith("seed0") else 1) for name in kept
    }
    lines = capsys.readouterr().err.splitlines()
    assert lines.count("reach-dense-none-seed0: resumed") == 1
    assert any(
        line.startswith("reach-dense-none-seed0: killed by SIGKILL") and "retry 1 of 1" in line for line in lines
    )


def test_a_trial_that_fails_takes_no_other_down(make_schedule, tmp_path):
    schedule = make_schedule(
        {"0": {"exit": 2}, "1": {"exit": 1}}, retries=1, **(GRID | {"tasks": ("reach",), "seeds": (0, 1, 2)})
    )
    assert schedule.run() == End()
    assert [row.state for row in schedule.rows()] == ["failed", "failed", "finished"]
    kept = read_json(tmp_path / "sweep" / "sweep.json")["trials"]
    assert [entry["attempts"] for entry in kept.values()] == [1, 2, 1]  # bad input is not tried again
    assert kept["reach-dense-none-seed0"]["reason"] == "refused, status 2"


def test_interrupted_and_gone_on_with(make_schedule, tmp_path, expected_sum):
    plan = {seed: {"pause": 0.1} for seed in ("0", "1")}
    grid = {"tasks": ("reach",), "rewards": ("none",), "seeds": (0, 1, 2)}  # of which two have a place
    first = make_schedule(plan, **grid)
    run = SweepFolder(tmp_path / "sweep").run("reach-dense-none-seed0")
    done = when(lambda: RunProgress(run).read().step > 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert first.run() == End(signal.SIGINT)
    done.set()
    assert {row.state for row in first.rows()} <= {"waiting", "finished"}
    stopped_at = read_json(run.path / "checkpoint.json")["step"]
    assert 2 < stopped_at < 30

    second = make_schedule(**grid)
    assert second.run() == End()
    result = summaries(second, tmp_path / "sweep")
    assert result["reach-dense-none-seed0"]["began_at"] == [0, stopped_at]
    assert {name: summary["sum"] for name, summary in result.items()} == {
        name: expected_sum(int(name[-1])) for name in result
    }


def test_a_trial_outlives_the_death_of_its_watcher(make_schedule, tmp_path, expected_sum):
    """As when Ray kills its worker for want of memory, or its machine goes away."""
    schedule = make_schedule({"0": {"pause": 0.1}}, **(GRID | {"tasks": ("reach",), "seeds": (0,)}))
    name = "reach-dense-none-seed0"
    run = SweepFolder(tmp_path / "sweep").run(name)

    def kill_watcher():
        os.kill(read_json(run.config)["watcher"], signal.SIGKILL)

    done = when(lambda: RunProgress(run).read().step > 2, kill_watcher)
    assert schedule.run() == End()
    done.set()
    summary = read_json(run.summary)
    assert summary["sum"] == expected_sum(0)
    assert len(summary["began_at"]) == 2
    assert summary["began_at"][1] > 2  # its checkpoint, written when it lost its watcher


def test_a_machine_that_does_not_see_the_folder_is_named(cluster, tmp_path):
    with pytest.raises(UserError, match=r"does not see .*nowhere: name an --out on a file system"):
        cluster.require_folder(tmp_path / "nowhere", "token", Resources(0, 1))


@pytest.mark.parametrize(
    ("gpus", "cpus", "fits"),
    [(0, 1, 8), (0, 3, 2), (1, 1, 4), (2, 1, 2), (0.3, 0.5, 12), (1, 4, 2), (0, 16, 0), (8, 1, 0)],
)
def test_how_many_trials_a_machine_runs_at_once(gpus, cpus, fits):
    assert Resources(gpus, cpus).fit({"CPU": 8.0, "GPU": 4.0}) == fits
