"""The exactness beside the waterfall's times, and the file that they are kept in."""

import json
import math
import runpy
from pathlib import Path

import pytest
import torch

from genreward_fast.agent import Agent, AgentConfig, NetworkSize
from genreward_fast.bench.parity import distances, over_updates, parity, round_otherwise
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
    update = Agent.update

    def wrong(self, batch, sampler=None):
        metrics, latents = update(self, batch, sampler)
        if type(sampler).__name__ == "RecordedSampler":
            metrics["loss/reward"] = metrics["loss/reward"] * 1.5
        return metrics, latents

    monkeypatch.setattr(Agent, "update", wrong)
    assert parity(config(dtype="float32"), torch.device("cpu"), updates=2)["worst"] == pytest.approx(0.5, rel=0.01)


def test_the_exact_losses_tell_who_is_wrong(monkeypatch):
    update = Agent.update

    def wrong(self, batch, sampler=None):
        metrics, latents = update(self, batch, sampler)
        if self.config.capture:  # the fast one alone
            metrics["loss/reward"] = metrics["loss/reward"] * 1.5
        return metrics, latents

    monkeypatch.setattr(Agent, "update", wrong)
    found = parity(config(dtype="float32"), torch.device("cpu"), updates=3, exact=True)["exact"]
    assert set(found) == {"fast", "plain", "neighbour"}
    assert found["fast"]["largest"].pop("loss/reward") == pytest.approx(0.5, rel=0.01)
    assert found["plain"]["largest"].pop("loss/reward") > 0
    assert found["plain"] != found["neighbour"]
    for path in found.values():
        assert all(0 <= mean <= 1e-4 for name, mean in path["losses"].items() if name in found["fast"]["largest"])
        assert all(value <= 1e-4 for name, value in path["largest"].items() if name != "loss/reward")


def test_a_loss_that_is_no_number_is_not_overlooked():
    ours, theirs = [{"loss/value": math.nan}, {"loss/value": 1.0}], [{"loss/value": 1.0}] * 2
    for order in (ours, ours[::-1]):
        found = over_updates(distances(order, theirs))
        assert math.isnan(found["largest"]["loss/value"])
        assert math.isnan(found["losses"]["loss/value"])


def test_distances_are_relative_unless_told():
    ours, theirs = [{"loss/policy": 2.0, "loss/total": 1.0}], [{"loss/policy": 4.0, "loss/total": 1.0}]
    assert distances(ours, theirs)["loss/policy"].tolist() == [0.5]
    assert distances(ours, theirs, absolute=("loss/policy",))["loss/policy"].tolist() == [2.0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rounding_otherwise_is_one_unit_in_the_last_place(dtype):
    agent = Agent(config(dtype=dtype), 4, "cpu")
    before = agent.model.flat.buffer.clone()
    round_otherwise(agent, seed=0)
    after, casts = agent.model.flat.buffer, agent.model.casts
    up, down = (torch.nextafter(before, torch.tensor(way)) for way in (math.inf, -math.inf))
    assert ((after == before) | (after == up) | (after == down)).all()
    assert torch.equal(after[before == 0], before[before == 0])
    moved = (after != before)[before != 0].double().mean().item()
    assert moved == pytest.approx(2 / 3, abs=0.02)
    assert casts is None or torch.equal(casts.buffer, after.to(torch.bfloat16))


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
