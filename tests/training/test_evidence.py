"""What is kept of sweeps: figures of finished and unfinished runs, a picture, and a row of a table."""

import json
import os
import runpy
import subprocess
from pathlib import Path

import numpy as np
import pytest

from genreward_fast.agent.config import AgentConfig
from genreward_fast.commands.sweep import sweep as sweep_command
from genreward_fast.commands.train import train_settings
from genreward_fast.errors import UserError
from genreward_fast.training.device import describe_device, resolve_device
from genreward_fast.training.sweep.folder import SweepFolder
from genreward_fast.training.sweep.grid import Grid, parse_grid, trials_of
from genreward_fast.training.sweep.machines import Resources
from genreward_fast.training.sweep.state import Record, SweepState

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(BENCHMARKS / "training" / "evidence.py"))


@pytest.fixture
def sweep(tmp_path):
    """A sweep whose first trial is finished, whose second was stopped, and whose third had no place."""

    def make(name="sweep", evaluations=3, **grid):
        folder = SweepFolder(tmp_path / name)
        every = Grid(**({"tasks": ("reach",), "rewards": ("none",), "seeds": (0, 1, 2)} | grid))
        trials = trials_of(every, train_settings)
        states = [Record("finished", 2), Record("waiting", 1, "stopped at the --limit"), Record()]
        folder.create()
        SweepState(every, {t.name: r for t, r in zip(trials, states, strict=True)}).save(folder)
        for number, trial in enumerate(trials[:2]):
            run = folder.run(trial.name)
            run.goal.mkdir(parents=True)
            trial.config.save(run.config)
            (run.goal / "goal.json").write_text(json.dumps({"provenance": {"source": "expert", "seed": number}}))
            records = [{"step": 0, "notes": ["untrained encoders"]}]
            for index in range(1, evaluations + 1):
                rate = index / evaluations / (1 + number)
                records.append({"step": 100 * index, "time/seconds": 10.0 * index, "time/updates": 5.0 * index})
                records.append({"step": 100 * index, "eval/success": rate, "eval/success_low": rate / 2,
                                "eval/success_high": 1.0, "eval/return_mean": 7.0 * rate, "eval/return_std": 1.0,
                                "eval/episodes": 10.0})  # fmt: skip
            run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 9999, "half')
            if number == 0:
                run.summary.write_text(json.dumps({"seconds": 40.0, "device": "a GPU"}))
        return folder.path

    return make


def test_what_is_kept(script, sweep, tmp_path, capsys):
    results = tmp_path / "results"
    assert script["main"]([str(sweep()), "--name", "grid", "--results", str(results), "--commit", "abc"]) == 0
    assert "1 of 3 trials are finished" in capsys.readouterr().out
    result = json.loads((results / "grid.json").read_text())
    assert (result["name"], result["commit"]) == ("grid", "abc")
    assert result["not started"] == ["reach-dense-none-seed2"]
    assert [grid["seeds"] for grid in result["grids"]] == [[0, 1, 2]]
    first, second = result["trials"]
    assert {name: first[name] for name in ("task", "cell", "seed", "state", "attempts", "steps", "preset", "size")} == {
        "task": "reach", "cell": "dense", "seed": 0, "state": "finished", "attempts": 2, "steps": 300,
        "preset": "tiny", "size": "tiny",
    }  # fmt: skip
    assert (first["seconds"], first["steps/s"], first["device"], first["updates"]) == (40.0, 7.5, "a GPU", 15.0)
    assert (second["seconds"], second["steps/s"], second["device"], second["state"]) == (30.0, 10.0, None, "waiting")
    assert (first["reason"], second["reason"]) == ("", "stopped at the --limit")
    assert (first["notes"], second["goal"]) == (["untrained encoders"], {"source": "expert", "seed": 1})
    assert first["curve"][0] == {"step": 100, "success": pytest.approx(1 / 3), "return": pytest.approx(7 / 3)}
    assert second["final"] == {"step": 300, "episodes": 10.0, "success": 0.5, "success_low": 0.25, "success_high": 1.0,
                               "return_mean": 3.5, "return_std": 1.0}  # fmt: skip
    assert (results / "grid.png").stat().st_size > 5000
    assert {path.name for path in results.iterdir()} == {"grid.json", "grid.png"}


def test_long_curves_keep_their_ends(script, sweep):
    first, _ = script["collect"]([sweep(evaluations=500)])["trials"]
    steps = [point["step"] for point in first["curve"]]
    assert (len(steps), steps[0], steps[-1]) == (60, 100, 50_000)
    assert set(np.diff(steps)) <= {800, 900}


def test_parts_of_a_grid_come_together_once(script, sweep, tmp_path):
    first, second = sweep("first"), sweep("second", seeds=(3, 4, 5))
    script["main"]([str(first), "--name", "first", "--results", str(tmp_path), "--here"])
    here = describe_device(resolve_device("auto"))
    both = script["collect"]([tmp_path / "first.json", second])
    assert [trial["seed"] for trial in both["trials"]] == [0, 1, 3, 4]
    assert [trial["device"] for trial in both["trials"]] == ["a GPU", here, "a GPU", None]
    assert both["not started"] == ["reach-dense-none-seed2", "reach-dense-none-seed5"]
    assert [grid["seeds"][0] for grid in both["grids"]] == [0, 3]
    with pytest.raises(UserError, match="reach, dense, seed 0: twice"):
        script["collect"]([tmp_path / "first.json", first])


def test_runs_without_a_sweep_and_where_goals_lie(script, sweep):
    folder = sweep()
    trials = script["collect"]([folder / "runs"])["trials"]
    assert [(trial["seed"], trial["state"], "attempts" in trial) for trial in trials] == [
        (0, "finished", False), (1, "unfinished", False),
    ]  # fmt: skip
    state = json.loads((folder / "sweep.json").read_text())
    state["grid"]["goals"] = "/somebody/goals"
    (folder / "sweep.json").write_text(json.dumps(state))
    assert [grid["goals"] for grid in script["collect"]([folder])["grids"]] == ["goals"]


def test_bad_sources(script, tmp_path, capsys):
    (tmp_path / "other.json").write_text("[]")
    for source, says in (("other.json", "not a file of this script"), ("nowhere", "no such folder")):
        assert script["main"]([str(tmp_path / source), "--name", "x", "--results", str(tmp_path / "results")]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_the_mean_of_seeds_ends_where_the_shortest_does(script):
    def curve(*points):
        return [{"step": step, "success": value} for step, value in points]

    steps, values = script["mean_curve"]([curve((0, 0.0), (10, 1.0), (20, 1.0)), curve((0, 0.0), (12, 0.6))], "success")
    assert steps.tolist() == [0, 10, 12]
    assert values == pytest.approx([0, 0.75, 0.8])
    assert len(script["mean_curve"]([curve((0, None)), []], "success")[0]) == 0


def test_a_part_of_the_grid_asks_for_what_the_page_says(tmp_path):
    """The script with a `genreward` and a `python` that only note what they are called with."""
    for program in ("genreward", "python"):
        (tmp_path / program).write_text(f'#!/bin/sh\nfor word in {program} "$@"; do echo "$word"; done >> "$NOTES"\n')
        (tmp_path / program).chmod(0o755)
    notes = tmp_path / "notes"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NOTES": str(notes)}
    script = BENCHMARKS / "training" / "grid_a.sh"
    subprocess.run(["sh", str(script), "reach", "2"], cwd=tmp_path, env=environment, check=True)
    words = notes.read_text().split("\n")[:-1]
    call, evidence = words[: words.index("python")], words[words.index("python") :]
    assert evidence[2:] == ["sweeps/grid_a-reach-2", "--name", "grid_a-reach-2", "--results", "evidence", "--here"]
    options = sweep_command.make_context("sweep", call[2:]).params
    assert (options["local"], options["limit"], options["out"]) == (True, 500.0, Path("sweeps/grid_a-reach-2"))
    grid = {name: options[name] for name in ("tasks", "rewards", "env_rewards", "seeds", "goals")}
    trials = trials_of(Grid(**parse_grid(flags=options["train_flags"], **grid)), train_settings)
    assert len(trials) == Resources(options["gpus_per_trial"], options["cpus_per_trial"]).fit({"GPU": 2, "CPU": 32})
    assert [(t.task, t.seed, t.env_reward, t.reward) for t in trials] == [
        ("reach", 2, "dense", "none"), ("reach", 2, "sparse", "none"), ("reach", 2, "sparse", "genreward"),
        ("reach", 2, "sparse", "genreward:no-video"), ("reach", 2, "sparse", "genreward:no-fb"),
        ("reach", 2, "dense", "genreward"),
    ]  # fmt: skip
    published = AgentConfig()
    for trial in trials:
        agent, train = trial.config.agent, trial.config.train
        assert agent == published
        assert (trial.config.encoders.preset, train.steps, trial.config.reward.fb_steps) == ("tiny", 50_000, 15_000)
        assert train.eval_episodes % train.envs == 0
        assert train.replay_capacity >= train.steps

    (tmp_path / "sweeps" / "grid_a-reach-2").mkdir(parents=True)
    (tmp_path / "sweeps" / "grid_a-reach-2" / "sweep.json").touch()
    notes.unlink()
    subprocess.run(["sh", str(script), "reach", "2"], cwd=tmp_path, env=environment, check=True)
    assert "--resume" in notes.read_text().split("\n")


def test_its_row_of_the_table(script, sweep):
    table = runpy.run_path(str(BENCHMARKS / "readme_tables.py"))
    result = script["collect"]([sweep()])
    assert table["evidence_rows"](result) == [
        ["reach", "dense", "0, 1", "300 of 6000", "75 (53 to 89, n = 20)", "5", "9", "a GPU, not said",
         "untrained encoders"]
    ]  # fmt: skip
