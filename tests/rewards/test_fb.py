import dataclasses
import io

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from genreward_fast.errors import UserError
from genreward_fast.rewards.fb import ForwardBackward
from genreward_fast.rewards.fb_losses import actor_loss

VARIANTS = [{}, {"next_action": "policy"}, {"standardise_features": True, "next_action": "policy"}]


@pytest.fixture
def make(fb_config):
    def build(seed=0, **changes):
        goal = torch.randn(5, generator=torch.Generator().manual_seed(9))
        return ForwardBackward(dataclasses.replace(fb_config, **changes), goal, 2, "cpu", seed)

    return build


def parameters(module):
    return torch.cat([value.detach().flatten() for value in module.parameters()])


def test_update_learns_and_reports_scalars(make, pairs):
    fb = make()
    before = parameters(fb.forward_net), parameters(fb.backward_net)
    metrics = fb.update(pairs(32))
    assert all(value.ndim == 0 and value.isfinite() for value in metrics.values())
    assert not torch.equal(before[0], parameters(fb.forward_net))
    assert not torch.equal(before[1], parameters(fb.backward_net))


def test_the_loss_of_a_fixed_batch_falls(make, pairs):
    fb = make()
    losses = [float(fb.update(pairs(32))["fb/loss"]) for _ in range(30)]
    assert sum(losses[-5:]) < sum(losses[:5]) - 5


def test_targets_move_by_tau(make, pairs):
    fb = make(tau=0.25)
    old = parameters(fb.forward_target), parameters(fb.backward_target)
    fb.update(pairs(32))
    for before, target, online in zip(old, (fb.forward_target, fb.backward_target), (fb.forward_net, fb.backward_net)):
        torch.testing.assert_close(parameters(target), before + 0.25 * (parameters(online) - before))
    assert not any(value.requires_grad for value in fb.forward_target.parameters())


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_update_reads_nothing_back_from_the_device(make, pairs, monkeypatch, changes):
    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    fb = make(**changes)
    monkeypatch.setattr(fb._optimizer, "step", lambda: None)  # on the CPU, Adam reads its own step counter
    batch = pairs(32)
    with Reads() as reads:
        fb.update(batch)
        assert reads.count == 0
        batch.action.sum().item()  # the check itself must see a read
    assert reads.count == 1


@pytest.mark.parametrize("power", [0.0, 1.0, 5.0])
def test_scores_come_from_weights_averaged_over_the_updates(make, pairs, power):
    """With F and B of every update kept, it is the sum in which the i-th weighs i^(p + 1) − (i − 1)^(p + 1)."""
    fb = make(averaging=power)
    kept = []
    for seed in range(6):
        fb.update(pairs(32, seed=seed))
        kept.append([parameters(fb.forward_net).double(), parameters(fb.backward_net).double()])
    steps = torch.arange(7, dtype=torch.float64) ** (power + 1)
    share = steps.diff() / steps[-1]
    for index, average in enumerate((fb.forward_average, fb.backward_average)):
        expected = sum(weight * each[index] for weight, each in zip(share, kept)).float()
        torch.testing.assert_close(parameters(average), expected, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(parameters(average), kept[-1][index].float(), rtol=1e-5, atol=1e-6)
    feature, action = torch.randn(7, 5), torch.rand(7, 2)
    before = fb.score(feature, action)
    fb.forward_net.last.weight.data.add_(1)
    fb._folded = None
    assert torch.equal(fb.score(feature, action), before)


def test_a_state_from_before_averaging_scores_as_it_did(make, pairs):
    fb, old = make(), make(seed=1)
    fb.update(pairs(32))
    state = {name: value for name, value in fb.state_dict().items() if "average" not in name and name != "updates"}
    old.load_state_dict(state)
    assert torch.equal(parameters(old.forward_average), parameters(fb.forward_net))
    assert torch.equal(parameters(old.backward_average), parameters(fb.backward_net))
    old.update(pairs(32))  # the average begins anew
    assert torch.equal(parameters(old.forward_average), parameters(old.forward_net))
    assert "updates" not in state


def test_pairs_across_episodes_are_left_out(make, pairs):
    batch = pairs(32)
    first = torch.zeros(32, 2, dtype=torch.bool)
    first[5, 1] = True
    batch = dataclasses.replace(batch, is_first=first)
    changed = batch.action.clone()
    changed[5] += 3
    one = make().update(batch)["fb/loss"]
    assert make().update(dataclasses.replace(batch, action=changed))["fb/loss"] == one
    kept = dataclasses.replace(batch, action=changed, is_first=torch.zeros_like(first))
    assert make().update(kept)["fb/loss"] != one


def test_nothing_follows_a_terminal_state(make, pairs):
    terminal = torch.zeros(32, 2, dtype=torch.bool)
    terminal[:, 1] = True

    def loss(batch, disturb):
        fb = make()
        if disturb:
            for value in fb.forward_target.parameters():
                value.add_(1)
        return fb.update(batch)["fb/loss"]

    ends = dataclasses.replace(pairs(32), is_terminal=terminal)
    assert loss(ends, disturb=True) == loss(ends, disturb=False)
    assert loss(pairs(32), disturb=True) != loss(pairs(32), disturb=False)


def test_z_is_half_gaussian_half_frames_with_the_goal_among_them(make):
    fb = make(mix=0.5, goal_mix=0.25)
    frames = torch.randn(4000, 5)
    with torch.no_grad():
        z = fb.sample_z(frames)
        known = fb.backward_net(frames)
        at_goal = (z - fb.backward_net(fb.goal)).norm(dim=1) < 1e-4
    torch.testing.assert_close(z.norm(dim=1), torch.full((4000,), 8**0.5))
    of_frame = torch.cdist(z, known).amin(1) < 1e-3
    assert at_goal.float().mean().item() == pytest.approx(0.125, abs=0.02)
    assert (of_frame | at_goal).float().mean().item() == pytest.approx(0.5, abs=0.03)
    # "Other" frames: hardly any row keeps its own.
    assert ((z - known).norm(dim=1) < 1e-4).float().mean() < 0.01


@pytest.mark.parametrize("reduce", ["min", "mean"])
def test_score_is_f_at_the_goal_times_b_of_the_goal(make, pairs, reduce):
    fb = make(reduce=reduce)
    for seed in range(3):  # the score must follow the learning
        fb.update(pairs(32, seed=seed))
        feature, action = torch.randn(7, 5), torch.rand(7, 2)
        with torch.no_grad():
            z = fb.backward_average(fb.goal)
            heads = fb.forward_average(feature, action, z.expand(7, -1)) @ z
        expected = heads.min(0).values if reduce == "min" else heads.mean(0)
        torch.testing.assert_close(fb.score(feature, action), expected, rtol=1e-4, atol=1e-4)


def test_an_actor_changes_neither_the_first_weights_nor_how_a_score_is_made(make, pairs):
    plain, fb = make(), make(next_action="policy")
    assert plain.actor is None
    assert torch.equal(parameters(plain.forward_net), parameters(fb.forward_net))
    feature, action = torch.randn(7, 5), torch.rand(7, 2)
    assert torch.equal(plain.score(feature, action), fb.score(feature, action))
    fb.update(pairs(32))
    with torch.no_grad():
        z = fb.backward_average(fb.goal)
        expected = (fb.forward_average(feature, action, z.expand(7, -1)) @ z).mean(0)
    torch.testing.assert_close(fb.score(feature, action), expected, rtol=1e-4, atol=1e-4)


def test_the_actor_climbs_and_leaves_f_alone(make, pairs):
    fb = make(next_action="policy", mix=1.0, goal_mix=1.0)
    batch = pairs(32)
    before = parameters(fb.actor)
    fb.update(batch)
    assert not torch.equal(before, parameters(fb.actor))
    # The gradient of F is that of the measure's loss, whatever the actor's is.
    gradient = [value.grad.clone() for value in fb.forward_net.parameters()]
    twin = make(next_action="policy", mix=1.0, goal_mix=1.0)
    twin.actor.last.bias.register_hook(lambda grad: 100 * grad)
    twin.update(batch)
    assert all(torch.equal(value.grad, other) for value, other in zip(twin.forward_net.parameters(), gradient))
    # With F and B held still, π's action becomes worth more.
    for group in (fb._online, fb._target):
        for value in group:
            value.requires_grad_(False)
    z = fb.backward_net(fb.goal).expand(32, -1)
    optimizer = torch.optim.Adam(fb.actor.parameters(), lr=1e-3)

    def worth():
        return actor_loss(fb.forward_net(batch.feature[:, 0], fb.actor(batch.feature[:, 0], z), z), z, "mean")[0]

    first = worth().item()
    for _ in range(30):
        optimizer.zero_grad()
        worth().backward()
        optimizer.step()
    assert worth().item() < first - 1e-3


def test_features_are_standardised_by_what_was_seen(make, pairs):
    fb = make(standardise_features=True)
    shift = torch.tensor([100.0, 0.0, -50.0, 0.0, 7.0])
    batches = [
        dataclasses.replace(batch, feature=3 * batch.feature + shift)
        for batch in (pairs(40, seed=seed) for seed in range(3))
    ]
    for batch in batches:
        fb.update(batch)
    rows = torch.cat([batch.feature[:, 0] for batch in batches])
    torch.testing.assert_close(fb.feature_norm.mean, rows.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fb.feature_norm.deviation, rows.std(0, correction=0), rtol=1e-4, atol=1e-4)
    seen = fb.seen(rows)
    torch.testing.assert_close(seen.std(0, correction=0), torch.ones(5), rtol=1e-3, atol=1e-3)
    action = torch.rand(len(rows), 2)
    with torch.no_grad():
        z = fb.backward_average(fb.seen(fb.goal))
        expected = (fb.forward_average(seen, action, z.expand(len(rows), -1)) @ z).mean(0)
    torch.testing.assert_close(fb.score(rows, action), expected, rtol=1e-4, atol=1e-4)


def test_a_feature_that_never_varies_stays_small(make, pairs):
    fb = make(standardise_features=True)
    batch = pairs(32)
    batch.feature[..., 2] = 1000.0
    fb.update(batch)
    assert fb.seen(batch.feature)[..., 2].abs().max() < 1
    assert fb.seen(batch.feature).isfinite().all()


def test_freezing_standardises(make, pairs):
    fb = make()
    fb.update(pairs(32))
    batches = [pairs(32, seed=seed) for seed in range(3)]
    raw = torch.cat([fb.score(batch.feature.flatten(0, 1), batch.action.flatten(0, 1)) for batch in batches])
    metrics = fb.freeze(iter(batches))
    assert float(metrics["fb/raw_mean"]) == pytest.approx(raw.mean().item(), rel=1e-4)
    assert fb.frozen
    standardised = fb.standardised(raw)
    assert standardised.mean().item() == pytest.approx(0, abs=1e-4)
    assert standardised.std(correction=0).item() == pytest.approx(1, abs=1e-3)
    with pytest.raises(RuntimeError):
        fb.update(pairs(32))


def test_the_last_row_of_an_episode_is_not_measured(make, pairs):
    last = torch.zeros(32, 2, dtype=torch.bool)
    last[:, 1] = True
    batch = dataclasses.replace(pairs(32), is_last=last)
    fb = make()
    expected = fb.score(batch.feature[:, 0], batch.action[:, 0]).mean()
    assert float(fb.freeze([batch])["fb/raw_mean"]) == pytest.approx(expected.item(), rel=1e-4)


def test_scores_that_are_all_alike_stay_finite(make, pairs):
    fb = make()
    batch = pairs(8)
    batch = dataclasses.replace(batch, feature=torch.ones_like(batch.feature), action=torch.ones_like(batch.action))
    fb.freeze([batch])
    standardised = fb.standardised(fb.score(torch.ones(4, 5), torch.ones(4, 2)))
    assert standardised.isfinite().all()
    assert standardised.abs().max() < 2


def test_freezing_without_experience(make):
    with pytest.raises(UserError, match="without experience"):
        make().freeze([])


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_state_makes_the_next_update_identical(make, pairs, changes):
    one, two = make(seed=0, **changes), make(seed=1, **changes)
    for seed in range(3):
        one.update(pairs(32, seed=seed))
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    two.load_state_dict(torch.load(file, weights_only=True))
    first, second = one.update(pairs(32, seed=7)), two.update(pairs(32, seed=7))
    assert first == second
    assert torch.equal(parameters(one), parameters(two))
    one.freeze([pairs(32)])
    three = make(seed=2, **changes)
    three.load_state_dict(one.state_dict())
    assert three.frozen
    probe = torch.randn(4, 5), torch.rand(4, 2)
    assert torch.equal(one.standardised(one.score(*probe)), three.standardised(three.score(*probe)))


def test_half_precision_features_and_wrong_shapes(make, pairs):
    batch = pairs(32)
    make().update(dataclasses.replace(batch, feature=batch.feature.half()))
    with pytest.raises(ValueError, match="features"):
        make().update(dataclasses.replace(batch, feature=None))
    with pytest.raises(ValueError, match="features"):
        make().update(dataclasses.replace(batch, feature=batch.feature[..., :3]))


def test_seeds(make):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert torch.equal(parameters(make(0)), parameters(make(0)))
    assert not torch.equal(parameters(make(0)), parameters(make(1)))
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn from the global generator


@pytest.mark.gpu
def test_on_a_gpu_the_same_update_without_a_synchronisation(fb_config, pairs):
    goal = torch.randn(5, generator=torch.Generator().manual_seed(9))
    config = dataclasses.replace(fb_config, mix=1.0, goal_mix=1.0)  # z without randomness: generators differ
    here, there = (ForwardBackward(config, goal, 2, device, capture=False) for device in ("cpu", "cuda"))
    batch = pairs(32)
    moved = dataclasses.replace(
        batch, **{f.name: v.cuda() for f in dataclasses.fields(batch) if (v := getattr(batch, f.name)) is not None}
    )
    there.update(moved)
    here.update(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        metrics = there.update(moved)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = here.update(batch)
    for name, value in expected.items():
        assert float(metrics[name]) == pytest.approx(float(value), rel=1e-2, abs=1e-2)  # products in TF32
