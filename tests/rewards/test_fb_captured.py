"""FB's update as a CUDA graph against the same update run plainly, and on CUDA against the CPU."""

import dataclasses
import io

import pytest
import torch

from genreward_fast.kernels.precision import exact_products
from genreward_fast.rewards import fb as fb_module
from genreward_fast.rewards.fb import ForwardBackward
from genreward_fast.rewards.fb_networks import scaled_to_sphere

VARIANTS = [
    {},
    {"reduce": "min"},
    {"next_action": "policy"},
    {"standardise_features": True, "next_action": "policy", "reduce": "min"},
]

pytestmark = pytest.mark.gpu


@pytest.fixture
def make(fb_config):
    def build(device="cuda", capture=True, **changes):
        goal = torch.randn(5, generator=torch.Generator().manual_seed(9))
        config = dataclasses.replace(fb_config, hidden=64, **changes)
        return ForwardBackward(config, goal.to(device), 2, device, seed=0, capture=capture)

    return build


def saved(fb):
    buffer = io.BytesIO()
    torch.save(dict(fb.state_dict()), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True, map_location="cpu")


def assert_same(fb, other, rel=1e-6):
    """Parameters, averages and counters; and what the next draws come from."""
    ours, theirs = fb.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if isinstance(value, torch.Tensor):
            assert float((value - theirs[name]).norm()) <= rel * (1 + float(value.norm())), name
    assert torch.equal(fb.generator.get_state(), other.generator.get_state())


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_captured_updates_are_the_plain_ones(make, pairs, changes):
    plain, captured = make(capture=False, **changes), make(**changes)
    start = torch.cat([value.detach().flatten().clone() for value in captured.forward_net.parameters()])
    for seed in range(6):
        batch = pairs(32, seed=seed)
        expected, found = plain.update(batch), captured.update(batch)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert float(found[name]) == pytest.approx(float(value), rel=1e-5, abs=1e-6), name
    assert captured._captured.graphs == 1
    assert_same(plain, captured)
    after = torch.cat([value.detach().flatten() for value in captured.forward_net.parameters()])
    assert float((after - start).norm()) > 1e-3


def test_metrics_and_scores_outlive_and_follow_the_replays(make, pairs):
    fb, plain = make(), make(capture=False)
    row = pairs(4, seed=50)
    feature, action = row.feature[:, 0].cuda(), row.action[:, 0].cuda()
    kept = []
    for seed in range(4):
        metrics = fb.update(pairs(32, seed=seed))
        kept.append((metrics["fb/loss"], float(metrics["fb/loss"])))
        plain.update(pairs(32, seed=seed))
        torch.testing.assert_close(fb.score(feature, action), plain.score(feature, action), rtol=1e-4, atol=1e-4)
    assert all(float(value) == number for value, number in kept)


@pytest.mark.parametrize("changes", [{}, {"next_action": "policy"}], ids=str)
def test_a_replay_never_waits_for_the_device(make, pairs, changes):
    fb = make(**changes)
    batch = pairs(32)
    batch = dataclasses.replace(
        batch, **{name: getattr(batch, name).cuda() for name in ("feature", "action", "is_first", "is_terminal")}
    )
    for _ in range(2):
        fb.update(batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        fb.update(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_loaded_state_is_recorded_anew(make, pairs):
    fb, other, fresh = make(), make(), make()
    for seed in range(3):
        fb.update(pairs(32, seed=seed))
        other.update(pairs(32, seed=seed + 10))
    for resumed in (other, fresh):
        resumed.load_state_dict(saved(fb))
        assert resumed._captured.graphs == 0
    for seed in range(3, 7):
        for each in (fb, other, fresh):
            each.update(pairs(32, seed=seed))
    for resumed in (other, fresh):
        assert resumed._captured.graphs == 1
        assert_same(fb, resumed)


def test_batches_of_other_sizes(make, pairs):
    plain, captured = make(capture=False), make()
    for count in (32, 17, 32, 17, 9, 32, 9):
        plain.update(pairs(count, seed=count))
        captured.update(pairs(count, seed=count))
    assert captured._captured.graphs == 2  # the third size runs without
    assert_same(plain, captured)


def test_freezing_gives_the_memory_back(make, pairs):
    fb = make()
    torch.cuda.synchronize()
    for seed in range(3):
        fb.update(pairs(512, seed=seed))
    row = pairs(2)
    fb.score(row.feature[:, 0].cuda(), row.action[:, 0].cuda())  # makes what scores are computed from
    before = torch.cuda.memory_allocated()
    fb.freeze([pairs(32)])
    assert fb._captured.graphs == 0
    assert all(value.grad is None for value in fb.parameters())
    assert torch.cuda.memory_allocated() < before


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize(("tf32", "limit"), [(False, 1e-4), (True, 5e-2)], ids=["float32", "tf32"])
def test_gradients_are_those_of_the_cpu(make, pairs, monkeypatch, changes, tf32, limit):
    """With the same goal vectors and noise on both. TF32 turns a few units that are nearly 0 on or off."""
    if not tf32:
        monkeypatch.setattr(fb_module, "tf32_products", exact_products)
    z = torch.nn.functional.normalize(torch.randn(64, 8), dim=-1) * 8**0.5
    batch = pairs(64, seed=3)
    found = {}
    for device in ("cpu", "cuda"):
        fb = make(device, **changes)
        monkeypatch.setattr(fb, "sample_z", lambda frames, at=device: z.to(at))
        monkeypatch.setattr(fb, "_noisy", lambda action: action)
        metrics = fb.update(batch)
        gradient = torch.cat([value.grad.flatten().cpu() for value in (*fb._online, *fb._actor)])
        found[device] = gradient, {name: float(value) for name, value in metrics.items()}
    (expected, numbers), (gradient, others) = found["cpu"], found["cuda"]
    assert float((gradient - expected).norm() / expected.norm()) <= limit
    assert others == {name: pytest.approx(value, rel=limit, abs=limit) for name, value in numbers.items()}


def test_scaling_to_the_sphere_is_that_of_the_cpu():
    vectors = torch.randn(33, 7)
    vectors[3] = 0
    vectors[5] *= 1e-8
    there = vectors.cuda().requires_grad_()
    here = vectors.clone().requires_grad_()
    found, expected = scaled_to_sphere(there), scaled_to_sphere(here)
    assert not found[3].any()
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-6)
    upstream = torch.randn(33, 7)
    upstream[3:6] = 0  # so close to 0 the slope itself is beyond float32
    gradients = [
        torch.autograd.grad(out, at, upstream.to(out.device))[0].cpu() for out, at in ((found, there), (expected, here))
    ]
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) <= 1e-5
