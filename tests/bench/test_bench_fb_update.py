"""FB's update is timed in ways that learn the same."""

from __future__ import annotations

import json

import pytest
import torch

from genreward_fast.bench import fb_update
from genreward_fast.bench.released_update import ReleasedUpdate, released_losses
from genreward_fast.cli import main
from genreward_fast.rewards.config import FBConfig
from genreward_fast.rewards.fb import ForwardBackward
from genreward_fast.rewards.fb_losses import orthonormality_loss, successor_loss


def test_the_released_losses_are_ours():
    forward, target_forward = torch.randn(2, 2, 9, 4, dtype=torch.float64)
    backward, target_backward = torch.randn(2, 9, 4, dtype=torch.float64)
    discount = 0.98 * (torch.arange(9) % 4 > 0).double()
    outputs = (forward, backward, target_forward, target_backward, discount)
    terms = released_losses(*outputs)
    loss, metrics = successor_loss(*outputs, "mean", torch.ones(9, dtype=torch.float64))
    ortho, _ = orthonormality_loss(backward)
    torch.testing.assert_close(terms["off_diagonal"] + terms["diagonal"], loss)
    torch.testing.assert_close(terms["ortho_off_diagonal"] + terms["ortho_diagonal"], ortho)
    for name in ("measure", "target"):
        torch.testing.assert_close(terms[name], metrics[f"fb/{name}"])


def test_the_released_update_is_ours_but_for_its_draws(monkeypatch):
    """With the same goal vectors, weights and targets are the same after an update."""
    config = FBConfig(z_dim=8, hidden=16, lr=1e-3, batch=32)
    fb = ForwardBackward(config, torch.randn(fb_update.FEATURES), fb_update.ACTIONS, "cpu")
    released = ReleasedUpdate(fb.forward_net, fb.backward_net, config)
    z = torch.randn(32, 8)
    monkeypatch.setattr(fb, "sample_z", lambda frames: z)
    monkeypatch.setattr(released, "_goal_vectors", lambda frames: z)
    before = [value.clone() for value in fb.forward_net.parameters()]
    batch = fb_update.make_pairs(32, torch.device("cpu"))
    numbers, metrics = released.update(batch), fb.update(batch)
    assert len(numbers) == 12
    assert numbers["loss"] == pytest.approx(float(metrics["fb/loss"]), rel=1e-4, abs=1e-4)
    assert not torch.equal(before[0], fb.forward_net.first.weight)
    for name in ("forward_net", "backward_net", "forward_target", "backward_target"):
        for ours, theirs in zip(getattr(fb, name).parameters(), getattr(released, name).parameters()):
            difference = (ours - theirs).detach()
            assert float(difference.norm()) <= 1e-3 * (1 + float(ours.detach().norm())), name


def test_benchmark_writes_its_numbers(tmp_path, capsys):
    target = tmp_path / "numbers.json"
    fb_update.main(["--device", "cpu", "--rows", "2", "16", "--seconds", "0.01", "--json", str(target)])
    written = json.loads(target.read_text())
    assert written["op"] == "fb_update"
    assert [(r["rows"], r["variant"]) for r in written["results"]] == [
        (rows, way) for rows in (2, 16) for way in ("launched one by one", "released code's way")
    ]
    assert all(r["ms"] > 0 and r["% of limit"] > 0 for r in written["results"])
    assert "fb_update on CPU" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        fb_update.main(["--device", "cpu", "--rows", "1"])


def test_it_is_a_choice_of_the_command(monkeypatch):
    given = []
    monkeypatch.setattr(fb_update, "main", given.append)
    assert main(["bench", "--what", "fb-update", "--device", "cpu", "--seconds", "0.5"]) == 0
    assert given == [["--device", "cpu", "--seconds", "0.5"]]
