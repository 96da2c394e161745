"""The exactness beside the waterfall's times, and the file that they are kept in."""

import json
import runpy
from pathlib import Path

import pytest
import torch

from genreward_fast.agent import AgentConfig, NetworkSize
from genreward_fast.bench.parity import parity
from genreward_fast.kernels.triton_support import references_only, runs_triton

ROOT = Path(__file__).parents[2]
SMALL = NetworkSize(deter=64, hidden=16, classes=4, depth=2, units=16, stoch=4)


def config(**options) -> AgentConfig:
    return AgentConfig(network=SMALL, size="small", batch_size=2, batch_length=4, imagination=3, **options)


def test_float32_agrees_and_bfloat16_is_near():
    device = torch.device("cpu")
    exact = parity(config(dtype="float32"), device, updates=3)
    assert exact["worst"] < 1e-4
    assert exact["policy"] < 1e-5
    near = parity(config(dtype="bfloat16"), device, updates=3)
    assert exact["worst"] < near["worst"] < 0.02
    assert set(near["losses"]) == {
        f"loss/{name}" for name in ("image", "dyn", "rep", "reward", "con", "policy", "value", "repval")
    }


def test_a_wrong_update_shows(monkeypatch):
    from genreward_fast.agent import Agent

    update = Agent.update

    def wrong(self, batch, sampler=None):
        metrics, latents = update(self, batch, sampler)
        if type(sampler).__name__ == "RecordedSampler":
            metrics["loss/reward"] = metrics["loss/reward"] * 1.5
        return metrics, latents

    monkeypatch.setattr(Agent, "update", wrong)
    assert parity(config(dtype="float32"), torch.device("cpu"), updates=2)["worst"] == pytest.approx(0.5, rel=0.01)


def test_references_only_is_undone():
    before = runs_triton(torch.zeros(1))
    with references_only():
        assert not runs_triton(torch.zeros(1))
        with references_only():
            pass
        assert not runs_triton(torch.zeros(1))
    assert runs_triton(torch.zeros(1)) == before


def test_the_waterfall_grows(tmp_path, capsys):
    script = runpy.run_path(str(ROOT / "benchmarks" / "agent" / "waterfall.py"))
    target = tmp_path / "waterfall.json"
    small = ["--size", "tiny", "--batch-size", "2", "--batch-length", "2", "--imagination", "1", "--updates", "1"]
    options = ["--file", str(target), "--device", "cpu", "--seconds", "0.01", *small]
    assert script["main"](["parity", "--name", "first", *options]) == 2
    assert "no entry" in capsys.readouterr().err
    assert script["main"](["add", "--name", "first", "--predicted", "1-2", "--commit", "abc", *options]) == 0
    (entry,) = json.loads(target.read_text())["entries"]
    assert entry["predicted ms"] == "1-2"
    assert entry["measured ms"] > 0
    assert entry["parity"]["float32"]["worst"] < 1e-4
    assert entry["commit"] == "abc"
    assert script["main"](["parity", "--name", "first", *options]) == 0
    assert len(json.loads(target.read_text())["entries"]) == 1
