"""The flat parameters, their copies in the compute dtype, and how gradients reach the optimiser."""

import io

import pytest
import torch

from genreward_fast.agent import Agent, AgentConfig, NetworkSize, RecordedSampler, RecordingSampler
from genreward_fast.agent.flat import Flat, collect
from genreward_fast.agent.model import Model
from genreward_fast.agent.nets import Layer
from genreward_fast.kernels.laprop import ALIGN
from genreward_fast.types import Batch

SMALL = NetworkSize(deter=64, hidden=32, classes=4, depth=2, units=32, stoch=8)
ACTIONS = 3


def small_config(**options):
    defaults = {"size": "small", "network": SMALL, "dtype": "float32", "batch_size": 3, "batch_length": 6}
    return AgentConfig(**{**defaults, "imagination": 4, **options})


def make_batch(config, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = (config.batch_size, config.batch_length + config.context)
    nothing = torch.zeros(rows, dtype=torch.bool)
    return Batch(
        image=torch.randint(0, 256, (*rows, 64, 64, 3), generator=generator, dtype=torch.uint8),
        action=torch.rand(*rows, ACTIONS, generator=generator) * 2 - 1,
        reward=torch.randn(rows, generator=generator),
        is_first=nothing,
        is_last=nothing,
        is_terminal=nothing,
        deter=torch.randn(*rows, SMALL.deter, generator=generator).tanh(),
        stoch=torch.randint(0, SMALL.classes, (*rows, SMALL.stoch), generator=generator).to(torch.uint8),
        index=torch.arange(rows[0] * rows[1]).view(rows),
    )


def images(n):
    return torch.randint(0, 256, (n, 64, 64, 3), dtype=torch.uint8)


def make_agent(seed=1, **options):
    return Agent(small_config(**{"dtype": "bfloat16", "warmup": 1, "lr": 1e-2, **options}), ACTIONS, "cpu", seed=seed)


def assert_fresh(model):
    for flat, casts in ((model.flat, model.casts), (model.slow, model.slow_casts)):
        assert torch.equal(casts.buffer, flat.buffer.bfloat16())


def test_parameters_keep_names_order_and_values():
    config = small_config()
    plain, agent = Model(config, ACTIONS), Agent(config, ACTIONS, "cpu", seed=5)
    plain.initialize(torch.Generator().manual_seed(5))
    expected, found = plain.state_dict(), agent.model.state_dict()
    assert list(expected) == list(found)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    flat = agent.model.flat
    for name, parameter in agent.model.trained():
        assert parameter.is_contiguous()
        assert parameter.untyped_storage().data_ptr() == flat.buffer.untyped_storage().data_ptr(), name
        assert parameter.storage_offset() % ALIGN == 0
    assert torch.equal(flat.buffer[flat.start("critic.") :], agent.model.slow.buffer)


def test_copies_follow_whoever_writes():
    agent = make_agent()
    assert_fresh(agent.model)
    for seed in range(3):
        agent.update(make_batch(agent.config, seed))
        assert_fresh(agent.model)
    other = make_agent(seed=2)
    other.load_state_dict(agent.state_dict())
    other.model.refresh()
    assert torch.equal(other.model.casts.buffer, agent.model.casts.buffer)
    first = torch.ones(2, dtype=torch.bool)
    with torch.no_grad():
        agent.model.actor.mean.bias.fill_(20)
    assert (agent.act(images(2), first, agent.initial(2), mode="mean")[0] == 1).all()
    assert_fresh(agent.model)


def test_copies_are_not_saved():
    agent = make_agent()
    state = agent.state_dict()
    assert all(value.dtype != torch.bfloat16 for value in state["model"].values())
    for saving, limit in ((state, 4.5), (agent.policy_state(), 1.1)):  # four buffers, and rests
        buffer = io.BytesIO()
        torch.save(saving, buffer)
        assert buffer.tell() < limit * agent.model.flat.buffer.nbytes


def test_an_update_with_copies_is_the_one_without():
    plain, agent = make_agent(), make_agent()
    for module in plain.model.modules():
        if isinstance(module, Layer):
            module.copies = {}
    for seed in range(3):
        recorder = RecordingSampler(make_agent(seed).sampler)
        expected, latents = plain.update(make_batch(plain.config, seed), recorder)
        found, other = agent.update(make_batch(agent.config, seed), RecordedSampler(recorder.draws()))
        assert torch.equal(latents.deter, other.deter)
        for name, value in expected.items():
            assert float(found[name]) == pytest.approx(float(value), rel=1e-6), name
    # The critic's parameters are used twice: both add the two gradients in float32.
    assert torch.equal(plain.model.flat.buffer, agent.model.flat.buffer)
    assert torch.equal(plain.model.slow.buffer, agent.model.slow.buffer)


def test_acting_rounds_no_weight():
    agent = make_agent()
    first = torch.ones(2, dtype=torch.bool)
    agent.act(images(2), first, agent.initial(2))
    weights = {tuple(p.shape) for _, p in agent.model.trained() if p.dim() > 1}
    with torch.profiler.profile(record_shapes=True) as profile:
        agent.act(images(2), first, agent.initial(2))
    rounded = [tuple(e.input_shapes[0]) for e in profile.events() if e.name == "aten::_to_copy"]
    # What upsampling convolutions and norms keep in float32 plays no part in acting.
    assert not weights.intersection(rounded)


def test_gradients_by_the_parameters_themselves_need_no_update():
    agent = make_agent()
    layer = agent.model.actor.mean
    x = torch.randn(3, layer.weight.shape[1]).bfloat16()
    grad = torch.autograd.grad(layer(x).float().sum(), layer.weight)[0]
    assert torch.allclose(grad, x.float().sum(0).expand_as(grad), rtol=0.02, atol=0.02)


def test_a_parameter_without_gradient_is_an_error():
    agent = make_agent()
    with agent.model.recording() as gradients:
        mean = agent.model.actor(torch.randn(2, agent.config.feature_size)).mean
        gradients.add([(mean, torch.ones_like(mean))])
        with pytest.raises(RuntimeError, match=r"encoder\.convs\.0\.weight"):
            gradients.total()


def test_collecting_adds_and_widens():
    flat = Flat([("a", torch.zeros(3, 5)), ("b", torch.zeros(1)), ("c", torch.zeros(2, 4, 6))])
    gradients = [
        [torch.randn(3, 5).bfloat16(), torch.randn(5, 3).t()],
        [torch.randn(1)],
        [torch.randn(2, 6, 4).transpose(1, 2), torch.randn(2, 4, 6).bfloat16(), torch.randn(2, 4, 6).bfloat16()],
    ]
    buffer = flat.zeros()
    collect(flat.segments.views(buffer), gradients)
    for view, group in zip(flat.views(buffer), gradients):
        assert torch.allclose(view, sum(g.float() for g in group), atol=1e-6)
    assert buffer.count_nonzero() == 15 + 1 + 48
