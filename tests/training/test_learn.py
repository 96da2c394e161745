"""The learning run's script, in small; and the time limit of a run."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from genreward_fast.cli import main

ROOT = Path(__file__).parents[2]
SMALL = ["--size", "tiny", "--dtype", "float32", "--device", "cpu", "--envs", "1", "--batch-size", "2"]
SMALL += ["--batch-length", "4", "--episode-length", "16", "--eval-episodes", "2", "--replay-capacity", "1000"]


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "benchmarks" / "training" / "learn.py"))


def test_it_keeps_its_curve(script, tmp_path, capsys):
    flags = ["--task", "reach-v3", "--prefill", "20", "--train-ratio", "1", "--steps", "64", "--results", str(tmp_path)]
    flags += ["--minutes", "1000"]  # they count from the process's start, and this process has run other tests
    assert script["main"]([*SMALL, *flags]) == 0
    assert "success rate" in capsys.readouterr().out
    task = next(tmp_path.glob("learn_*.json")).stem
    result = json.loads((tmp_path / f"{task}.json").read_text())
    assert (tmp_path / f"{task}.png").stat().st_size > 1000
    assert result["env_steps"] == 64
    assert result["updates"] > 0
    assert result["ended by"] == "steps"
    assert result["config"]["reward"]["name"] == "none"
    assert result["config"]["train"]["env_reward"] == "dense"
    assert result["evaluation"]["episodes"] == 2
    steps = [point["steps"] for point in result["curve"]]
    assert steps == sorted(steps)
    assert len(steps) >= 3
    assert 0 < result["curve"][0]["seconds"] < result["seconds"]


def trainer(successes: list[bool], updates: int = 1):
    episodes = [(1.0, success, 16) for success in successes]
    rollout = SimpleNamespace(episode_count=len(episodes), episodes=episodes, env_steps=16 * len(episodes))
    return SimpleNamespace(rollout=rollout, counters=SimpleNamespace(updates=updates))


def test_it_ends_early_when_success_is_stable(script):
    watch = script["Watch"](1e9, 0.95)
    assert not watch(trainer([True] * 99))
    assert not watch(trainer([False] * 6 + [True] * 94))
    assert not watch(trainer([True] * 100, updates=0))  # nothing has been learned yet
    assert watch(trainer([False] * 9 + [True] * 100))
    assert watch.reason == "success in 100% of the last 100 training episodes"
    assert [point["episodes"] for point in watch.curve] == [99, 100, 109]
    assert watch.curve[-1]["success"] == 1.0
    assert not script["Watch"](1e9, None)(trainer([True] * 100))


def test_it_ends_in_time(script):
    watch = script["Watch"](0.0, 0.95)
    assert watch(trainer([]))
    assert watch.reason == "time"
    assert 0 < script["seconds_since_start"]() < 10**6


def test_bad_input_is_one_line(script, tmp_path, capsys):
    assert script["main"](["--task", "fly", "--results", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def timed_run(tmp_path_factory):
    """A run that would take hours, and has a moment."""
    out = tmp_path_factory.mktemp("runs") / "run"
    flags = ["--task", "reach", "--reward", "none", "--prefill", "20", "--train-ratio", "1", "--minutes", "0.02"]
    assert main(["train", *SMALL, *flags, "--steps", "1000000", "--eval-every", "0", "--out", str(out)]) == 0
    return out


def test_minutes_end_a_run_with_an_evaluation(timed_run):
    summary = json.loads((timed_run / "summary.json").read_text())
    assert 0 < summary["env_steps"] < 1000000
    assert summary["evaluation"]["episodes"] == 2


def test_a_checkpoint_of_another_size_is_refused_in_one_line(timed_run, capsys):
    capsys.readouterr()
    resume = ["train", "--resume", "--out", str(timed_run)]
    assert main([*resume, "--size", "25M"]) == 2
    assert "--size 25M: differs" in capsys.readouterr().err
    config = json.loads((timed_run / "config.json").read_text())
    config["agent"]["size"] = "12M"
    (timed_run / "config.json").write_text(json.dumps(config))
    for command in (["eval", "--run", str(timed_run), "--episodes", "1"], resume):
        assert main(command) == 2
        captured = capsys.readouterr()
        assert "holds an agent of size tiny with 4 actions, but this one has size 12M" in captured.err
        assert len(captured.err.strip().splitlines()) == 1
        assert captured.out == ""
