"""The agent as a whole: acting, learning, saving."""

import dataclasses
import io

import pytest
import torch

from genreward_fast.agent import Agent, AgentConfig, Carry, NetworkSize, RecordedSampler, RecordingSampler
from genreward_fast.agent.rssm import State
from genreward_fast.errors import UserError
from genreward_fast.types import Batch, Latents

SMALL = NetworkSize(deter=64, hidden=32, classes=4, depth=2, units=32, stoch=8)
ACTIONS = 3
LOSSES = {"dyn", "rep", "image", "reward", "con", "policy", "value", "repval", "total"}


def small_config(**options):
    defaults = {"size": "small", "network": SMALL, "dtype": "float32", "batch_size": 3, "batch_length": 6}
    return AgentConfig(**{**defaults, "imagination": 4, **options})


def make_batch(config, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    rows = (config.batch_size, config.batch_length + config.context)
    flat = torch.randint(0, 256, (*rows, 1, 1, 3), generator=generator, dtype=torch.uint8)
    image = flat.expand(*rows, 64, 64, 3).clone()
    image[:, :, 16:40, 8:56] = 255 - image[:, :, 16:40, 8:56]
    is_first = torch.zeros(rows, dtype=torch.bool)
    is_first[0, 3] = True
    is_last = is_first.roll(-1, 1)
    batch = Batch(
        image=image,
        action=torch.rand(*rows, ACTIONS, generator=generator) * 2 - 1,
        reward=torch.randn(rows, generator=generator),
        is_first=is_first,
        is_last=is_last,
        is_terminal=is_last & False,
        deter=torch.randn(*rows, config.sizes.deter, generator=generator).tanh(),
        stoch=torch.randint(0, config.sizes.classes, (*rows, config.sizes.stoch), generator=generator).to(torch.uint8),
        index=torch.arange(rows[0] * rows[1]).view(rows),
    )
    values = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return Batch(**{name: value.to(device) if value is not None else None for name, value in values.items()})


def images(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 64, 64, 3), generator=generator, dtype=torch.uint8)


def saved(state):
    """The state as `torch.save` and `torch.load(weights_only=True)` carry it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def assert_same(a, b):
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, different


def test_act_shapes_and_bounds():
    agent = Agent(small_config(), ACTIONS, "cpu", seed=1)
    with torch.no_grad():
        agent.model.actor.mean.bias.fill_(5)  # means near 1, so that many draws lie beyond it
    first = torch.ones(5, dtype=torch.bool)
    action, carry, latents = agent.act(images(5), first, agent.initial(5))
    assert action.shape == (5, ACTIONS)
    assert action.dtype == torch.float32
    assert action.abs().max() <= 1
    assert (action == 1).any()
    assert torch.equal(carry.action, action)
    assert latents.deter.shape == (5, SMALL.deter)
    assert latents.stoch.shape == (5, SMALL.stoch)
    assert latents.stoch.dtype == torch.uint8
    assert torch.equal(carry.state.stoch.argmax(-1).to(torch.uint8), latents.stoch)
    assert torch.equal(carry.state.stoch.sum(-1), torch.ones(5, SMALL.stoch))


def test_act_is_a_function_of_the_generator():
    agent = Agent(small_config(), ACTIONS, "cpu", seed=1)
    first = torch.zeros(4, dtype=torch.bool)
    state = agent.sampler.generator.get_state()
    a, _, latents_a = agent.act(images(4), first, agent.initial(4))
    other, _, _ = agent.act(images(4), first, agent.initial(4))
    agent.sampler.generator.set_state(state)
    b, _, latents_b = agent.act(images(4), first, agent.initial(4))
    assert torch.equal(a, b)
    assert torch.equal(latents_a.stoch, latents_b.stoch)
    assert not torch.equal(a, other)


def test_act_mean_is_the_policys_mean():
    agent = Agent(small_config(), ACTIONS, "cpu", seed=1)
    first = torch.ones(4, dtype=torch.bool)
    action, carry, _ = agent.act(images(4), first, agent.initial(4), mode="mean")
    assert torch.equal(action, agent.model.actor(carry.state.features()).mean)


def test_reset_zeroes_state_and_action():
    agent = Agent(small_config(), ACTIONS, "cpu", seed=1)
    rest = agent.initial(2)
    rubbish = Carry(
        State(torch.full_like(rest.state.deter, float("nan")), torch.ones_like(rest.state.stoch)),
        torch.tensor([[0.5, -1.0, 1.0]] * 2),
    )
    acting = Carry(rest.state, rubbish.action)
    first = torch.ones(2, dtype=torch.bool)
    generator = agent.sampler.generator.get_state()

    def deter(carry, is_first):
        agent.sampler.generator.set_state(generator)
        return agent.act(images(2), is_first, carry)[2].deter

    expected = deter(rest, ~first)
    assert torch.equal(deter(rubbish, first), expected)
    assert not torch.equal(deter(acting, ~first), expected)  # without a reset the action counts
    mixed = deter(acting, torch.tensor([True, False]))
    assert torch.equal(mixed[0], expected[0])
    assert not torch.equal(mixed[1], expected[1])


def test_acting_step_by_step_is_the_scan_of_an_update():
    config = small_config(batch_size=2)
    agent = Agent(config, ACTIONS, "cpu", seed=2)
    batch = make_batch(config)
    recorder = RecordingSampler(agent.sampler)
    _, latents = Agent(config, ACTIONS, "cpu", seed=2).update(batch, recorder)
    draws = recorder.draws()
    stoch = torch.nn.functional.one_hot(batch.stoch[:, 0].long(), SMALL.classes).float()
    carry = Carry(State(batch.deter[:, 0], stoch), batch.action[:, 0])
    for t in range(config.batch_length):
        step = RecordedSampler(dataclasses.replace(draws, posterior=draws.posterior[:, t : t + 1]))
        _, carry, row = agent.act(batch.image[:, t + 1], batch.is_first[:, t + 1], carry, sampler=step)
        carry = Carry(carry.state, batch.action[:, t + 1])
        assert torch.allclose(row.deter, latents.deter[:, t], atol=1e-5)
        assert torch.equal(row.stoch, latents.stoch[:, t])


def test_update_returns_metrics_and_latents():
    config = small_config()
    agent = Agent(config, ACTIONS, "cpu")
    metrics, latents = agent.update(make_batch(config))
    assert {f"loss/{name}" for name in LOSSES} | {"opt/grad_norm"} <= metrics.keys()
    assert all(value.shape == () and value.isfinite() and not value.requires_grad for value in metrics.values())
    assert isinstance(latents, Latents)
    assert latents.deter.shape == (3, 6, SMALL.deter)
    assert latents.stoch.shape == (3, 6, SMALL.stoch)
    assert latents.stoch.dtype == torch.uint8
    assert not latents.deter.requires_grad
    assert agent.updates == 1
    scales = {"rep": 0.1, "repval": 0.3}
    total = sum(scales.get(name, 1.0) * metrics[f"loss/{name}"] for name in LOSSES - {"total"})
    assert torch.allclose(total, metrics["loss/total"])


def test_context_rows_only_give_the_start():
    config = small_config(context=2)
    batch = make_batch(config)
    agent = Agent(config, ACTIONS, "cpu", seed=3)
    expected, latents = agent.update(batch)
    assert latents.deter.shape[1] == config.batch_length
    changed = {name: getattr(batch, name).clone() for name in ("image", "reward", "deter", "action", "is_first")}
    changed["image"][:, :2] = 0
    changed["reward"][:, :2] = 99
    changed["is_first"][:, :2] = True
    changed["action"][:, 0] = 0.3
    changed["deter"][:, 0] = 7
    metrics, _ = Agent(config, ACTIONS, "cpu", seed=3).update(dataclasses.replace(batch, **changed))
    assert_same(expected, metrics)
    changed["deter"][:, 1] = 0.7
    metrics, _ = Agent(config, ACTIONS, "cpu", seed=3).update(dataclasses.replace(batch, **changed))
    assert metrics["loss/image"] != expected["loss/image"]


def test_batch_without_latents_is_refused():
    config = small_config()
    with pytest.raises(ValueError, match="deter"):
        Agent(config, ACTIONS, "cpu").update(dataclasses.replace(make_batch(config), deter=None))


def test_first_update_changes_only_the_moments():
    config = small_config()
    agent = Agent(config, ACTIONS, "cpu")
    before = {name: value.clone() for name, value in agent.model.named_parameters()}
    agent.update(make_batch(config))
    assert_same(before, dict(agent.model.named_parameters()))
    assert any(moment.any() for moment in agent.optimizer.mu)
    agent.update(make_batch(config))
    assert not torch.equal(before["encoder.convs.0.weight"], agent.model.encoder.convs[0].weight)


def test_resume_is_exact():
    config = small_config(warmup=2, lr=1e-3)
    agent = Agent(config, ACTIONS, "cpu", seed=4)
    for seed in range(3):
        agent.update(make_batch(config, seed))
    state = saved(agent.state_dict())
    other = Agent(config, ACTIONS, "cpu", seed=99)
    other.load_state_dict(state)
    assert other.updates == 3
    for seed in range(3, 5):
        expected, latents = agent.update(make_batch(config, seed))
        found, other_latents = other.update(make_batch(config, seed))
        assert_same(expected, found)
        assert torch.equal(latents.deter, other_latents.deter)
        assert torch.equal(latents.stoch, other_latents.stoch)
    assert_same(agent.model.state_dict(), other.model.state_dict())
    first = torch.ones(2, dtype=torch.bool)
    a, b = (x.act(images(2), first, x.initial(2))[0] for x in (agent, other))
    assert torch.equal(a, b)


def test_a_seed_gives_an_agent():
    config = small_config()
    a, b, c = (Agent(config, ACTIONS, "cpu", seed=seed) for seed in (5, 5, 6))
    assert_same(a.model.state_dict(), b.model.state_dict())
    assert not torch.equal(a.model.rssm.gates.weight, c.model.rssm.gates.weight)
    assert_same(a.update(make_batch(config))[0], b.update(make_batch(config))[0])


def test_foreign_checkpoints_are_refused():
    agent = Agent(small_config(), ACTIONS, "cpu")
    bigger = Agent(small_config(network=dataclasses.replace(SMALL, units=40), size="bigger"), ACTIONS, "cpu")
    for load in (agent.load_state_dict, agent.load_policy_state):
        with pytest.raises(UserError, match=r"bigger.*small.*units 40 instead of 32"):
            load(saved(bigger.state_dict()))
        with pytest.raises(UserError, match=r"5 actions.*3 actions"):
            load(saved(Agent(small_config(), 5, "cpu").state_dict()))
        for wrong in ({}, [], {"agent": 3}, {"agent": {}}):
            with pytest.raises(UserError, match="no agent"):
                load(wrong)


@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_incomplete_checkpoints_are_refused(part):
    agent = Agent(small_config(), ACTIONS, "cpu")
    state = saved(agent.state_dict())
    (state["model"] if part == "model" else state["optimizer"]["mu"]).pop("actor.mean.weight")
    with pytest.raises(UserError, match=r"actor\.mean\.weight") as error:
        agent.load_state_dict(state)
    assert "\n" not in str(error.value)


def test_policy_state_is_what_acting_needs():
    config = small_config(warmup=1, lr=1e-2)
    agent = Agent(config, ACTIONS, "cpu", seed=1)
    for _ in range(3):
        agent.update(make_batch(config))
    state = saved(agent.policy_state())
    assert "optimizer" not in state
    assert not any(name.startswith(("decoder", "critic", "slow_critic", "reward")) for name in state["model"])
    first = torch.ones(2, dtype=torch.bool)
    for source in (state, saved(agent.state_dict())):
        other = Agent(config, ACTIONS, "cpu", seed=2)
        decoder = other.model.decoder.image.weight.clone()
        other.load_policy_state(source)
        assert torch.equal(other.model.decoder.image.weight, decoder)
        actions = []
        for acting in (agent, other):
            acting.sampler.generator.manual_seed(0)
            action, carry, _ = acting.act(images(2), first, acting.initial(2))
            actions += [action, acting.act(images(2, 1), ~first, carry)[0]]
        assert torch.equal(actions[0], actions[2])
        assert torch.equal(actions[1], actions[3])
    state["model"].pop("encoder.convs.0.bias")
    with pytest.raises(UserError, match=r"encoder\.convs\.0\.bias"):
        other.load_policy_state(state)


def test_nan_shows_in_its_loss_and_raises_nothing():
    config = small_config()
    batch = make_batch(config)
    batch.reward[1, 3] = float("nan")
    metrics, _ = Agent(config, ACTIONS, "cpu").update(batch)
    assert metrics["loss/reward"].isnan()
    assert metrics["loss/repval"].isnan()
    for name in ("image", "con", "dyn", "rep", "value"):
        assert metrics[f"loss/{name}"].isfinite()


def test_recorded_draws_repeat_an_update():
    config = small_config()
    recorder = RecordingSampler(Agent(config, ACTIONS, "cpu", seed=7).sampler)
    expected, _ = Agent(config, ACTIONS, "cpu", seed=8).update(make_batch(config), recorder)
    draws = recorder.draws()
    assert draws.posterior.shape == (3, 6, SMALL.stoch)
    assert draws.prior.shape == (18, 4, SMALL.stoch)
    assert draws.action.shape == (18, 4, ACTIONS)
    found, _ = Agent(config, ACTIONS, "cpu", seed=8).update(make_batch(config), RecordedSampler(draws))
    assert_same(expected, found)
    different, _ = Agent(config, ACTIONS, "cpu", seed=8).update(make_batch(config))
    assert different["loss/image"] != expected["loss/image"]


def test_bfloat16_is_close_to_float32():
    # Sharper heads than the initial ones, so that there is something to compare.
    def make(dtype):
        config = small_config(dtype=dtype)
        agent = Agent(config, ACTIONS, "cpu", seed=1)
        with torch.no_grad():
            for part in (agent.model.reward, agent.model.critic):
                part.logits.weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
        agent.model.slow_critic.load_state_dict(agent.model.critic.state_dict())
        return agent

    config = small_config()
    recorder = RecordingSampler(make("float32").sampler)
    exact, latents = make("float32").update(make_batch(config), recorder)
    agent = make("bfloat16")
    found, rounded = agent.update(make_batch(config), RecordedSampler(recorder.draws()))
    assert rounded.deter.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in agent.model.parameters())
    error = (rounded.deter.float() - latents.deter).norm() / latents.deter.norm()
    assert 0 < error < 0.02
    for name in ("dyn", "rep", "image", "reward", "con", "value", "repval", "total"):
        assert found[f"loss/{name}"].dtype == torch.float32
        assert found[f"loss/{name}"] == pytest.approx(float(exact[f"loss/{name}"]), rel=0.02)
    assert found["opt/grad_norm"] == pytest.approx(float(exact["opt/grad_norm"]), rel=0.1)


def test_learns_a_toy_batch():
    config = small_config(lr=3e-3, warmup=5)
    agent = Agent(config, ACTIONS, "cpu", seed=1)
    batch = make_batch(config)
    history = [agent.update(batch)[0] for _ in range(60)]
    start, end = history[0], history[-1]
    image = batch.image[:, 1:].float() / 255
    best_constant = (image - image.mean((0, 1))).square().sum((-3, -2, -1)).mean()
    assert end["loss/image"] < 0.85 * best_constant < 0.85 * start["loss/image"]
    assert end["loss/reward"] < 0.8 * start["loss/reward"]
    assert end["loss/con"] < 0.5 * start["loss/con"]
    assert all(value.isfinite() for metrics in history for value in metrics.values())


@pytest.mark.gpu
def test_update_never_waits_for_the_device():
    config = small_config(dtype="bfloat16")
    agent = Agent(config, ACTIONS, "cuda")
    batch = make_batch(config, device="cuda")
    agent.update(batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        agent.update(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_devices_agree():
    config = small_config()
    recorder = RecordingSampler(Agent(config, ACTIONS, "cpu", seed=1).sampler)
    expected, latents = Agent(config, ACTIONS, "cpu", seed=2).update(make_batch(config), recorder)
    draws = recorder.draws()
    moved = dataclasses.replace(
        draws, posterior=draws.posterior.cuda(), prior=draws.prior.cuda(), action=draws.action.cuda()
    )
    found, other = Agent(config, ACTIONS, "cuda", seed=2).update(
        make_batch(config, device="cuda"), RecordedSampler(moved)
    )
    assert torch.allclose(latents.deter, other.deter.cpu(), atol=1e-4)
    for name, value in expected.items():
        if name.startswith("loss/"):
            assert float(found[name]) == pytest.approx(float(value), rel=1e-3, abs=1e-4)
