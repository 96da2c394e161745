"""Training as a whole is measured with and without the generated reward, and its parts add up."""

from __future__ import annotations

import dataclasses
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from genreward_fast.agent.config import NetworkSize
from genreward_fast.bench import timeline, train
from genreward_fast.bench.training_run import PARTS, started
from genreward_fast.cli import main
from genreward_fast.config import Overrides, apply, resolve
from genreward_fast.encoders.presets import Encoders
from genreward_fast.errors import UserError

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "training" / "draw_timeline.py"
SMALL = NetworkSize(deter=64, hidden=16, classes=4, depth=2, units=16, stoch=4)


@pytest.fixture
def config():
    flags = Overrides(
        task="reach", device="cpu", train_ratio=4, episode_length=16, window=8, interval=8, clip_frames=4,
        release_delay=8,
    )  # fmt: skip
    config = apply(resolve("tiny", Overrides()), flags)
    agent = dataclasses.replace(config.agent, network=SMALL, batch_size=4, batch_length=4)
    fb = dataclasses.replace(config.reward.fb, hidden=16, batch=16, z_dim=8)
    encoders = dataclasses.replace(config.encoders, clip_frame_size=32)
    return dataclasses.replace(config, agent=agent, reward=dataclasses.replace(config.reward, fb=fb), encoders=encoders)


@pytest.mark.parametrize("name", train.KINDS)
def test_each_kind_of_run_is_what_it_says(name, config):
    kind = train.KINDS[name]
    made = train.config_of(train.Request(config), 2, kind)
    assert made.train.envs == 2
    assert made.train.overlap == (name != "FB frozen, no overlap")
    assert made.reward.name == ("none" if name == train.ALONE else "genreward")
    assert (made.reward.fb_steps > 10**9) == (name == "FB learns")
    assert made.train.eval_every == 0


def test_a_run_its_parts_and_its_timeline(config, tmp_path, monkeypatch):
    encoders = Encoders(config.encoders, "cpu")
    made = train.config_of(train.Request(config), 1, train.KINDS["FB frozen"])
    with started(made, encoders) as run:
        assert run.reward.frozen
        assert run.episodes(None) == run.episodes(16) == 1
        assert run.episodes(17) == 2
        updates = run.trainer.counters.updates
        seconds, steps = run.seconds(2)
        assert steps == 32  # an episode has 17 rows, and the first of them is a reset
        assert run.trainer.counters.updates > updates
        assert seconds > 0
        parts = train.parts_of(run, 1)
        assert set(parts) == {*PARTS, train.REST}
        assert all(value > 0 for part, value in parts.items() if part != "FB update")
        found = train.trace(run, tmp_path / "trace.json")
    assert found["ms"] > 0
    assert "GPU busy %" not in found
    lanes = timeline.read_timeline(tmp_path / "trace.json", PARTS).parts
    assert set(PARTS) - {"FB update"} <= set(lanes)  # a window closes within the trace
    assert len(lanes["act"]) == train.TRACED_TICKS
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(tmp_path / "trace.json"), "--out", str(tmp_path / "a.png")])
    assert runpy.run_path(str(SCRIPT))["main"]() == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_how_busy_a_device_is(tmp_path):
    def event(kind, name, start, length, stream):
        where = {"args": {"stream": stream}} if stream else {"tid": 1}
        return {"ph": "X", "cat": kind, "name": name, "ts": 1000 * start, "dur": 1000 * length, **where}

    events = [
        event("user_annotation", "act", 10, 2, None),
        event("user_annotation", "agent updates", 12, 8, None),
        event("user_annotation", "Profiler", 0, 90, None),
        event("cpu_op", "aten::add", 11, 1, None),
        event("kernel", "gemm", 11, 3, 7),
        event("kernel", "conv", 12, 4, 9),
        event("gpu_memcpy", "copy", 18, 5, 7),
        {"ph": "M", "name": "process_name"},
    ]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": events}))
    found = timeline.read_timeline(path, PARTS)
    assert found.length == pytest.approx(10)
    assert found.parts["agent updates"] == [("agent updates", 2, 10)]
    assert {name: len(spans) for name, spans in found.streams.items()} == {"stream 7": 2, "stream 9": 1}
    assert found.busy == pytest.approx(0.7)  # 11 to 16 and 18 to 20
    for content, says in (({}, "not a profiler's trace"), ({"traceEvents": events[2:]}, "another program")):
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=says):
            timeline.read_timeline(path, PARTS)


def test_the_command_hands_its_options_over(monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(train, "run", lambda *arguments: asked.append(arguments))
    command = ["bench", "--what", "train", "--device", "cpu"]
    assert main(command) == 0
    request, target = asked.pop()
    assert (request.envs, request.steps, request.trace, target) == ((1, 4, 16), None, None, None)
    assert (request.config.preset, request.config.train.train_ratio) == ("tiny", 512)
    options = ["--preset", "paper", "--weights", "random", "--envs", "4", "--steps", "500", "--train-ratio", "64"]
    assert main([*command, *options, "--trace", str(tmp_path / "trace.json")]) == 0
    request, _ = asked.pop()
    assert (request.envs, request.steps, request.trace) == ((4,), 500, tmp_path / "trace.json")
    assert (request.config.encoders.weights, request.config.train.train_ratio) == ("random", 64)


@pytest.mark.parametrize(("option", "value"), [("--steps", "0"), ("--trace", "trace.txt")])
def test_bad_options(option, value, capsys):
    assert main(["bench", "--what", "train", "--device", "cpu", option, value]) == 2
    assert f"{option}" in capsys.readouterr().err


def test_missing_weights_are_missed_before_anything_is_measured(config, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "started", lambda *_: pytest.fail("measured"))
    encoders = dataclasses.replace(config.encoders, vae=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere"):
        train.run(train.Request(dataclasses.replace(config, encoders=encoders)), None)


@pytest.mark.slow
def test_all_of_it(config, tmp_path, capsys):
    target = tmp_path / "train.json"
    train.run(train.Request(config, envs=(1, 2), steps=16, trace=tmp_path / "trace.json"), target)
    written, printed = json.loads(target.read_text()), capsys.readouterr().out
    assert "untrained encoders" in printed
    assert [(row["envs"], row["run"]) for row in written["speeds"]] == [(n, k) for n in (1, 2) for k in train.KINDS]
    for row in written["speeds"]:
        assert row["steps/s"] > 0
        assert row["steps"] == 16 * row["envs"]
        assert (row["overhead %"] == 0) or row["run"] != train.ALONE
    for envs in (1, 2):
        for kind in ("dense reward alone", "FB learns", "FB frozen"):
            parts = [row for row in written["parts"] if (row["envs"], row["run"]) == (envs, kind)]
            assert sum(row["%"] for row in parts) == pytest.approx(100)
            spent = {row["part"]: row["ms per step"] for row in parts}
            assert (spent["FB update"] > 0) == (kind == "FB learns")
            assert (spent["clip encode"] > 0) == (kind != train.ALONE)
    assert written["trace"]["ms"] > 0
    assert torch.__version__ == written["torch"]
