"""The agent run as CUDA graphs against the same agent run plainly."""

import dataclasses
import io

import pytest
import torch

from genreward_fast.agent import Agent, AgentConfig, NetworkSize, RandomSampler
from genreward_fast.captured import Captured, _Graph
from genreward_fast.types import Batch

SMALL = NetworkSize(deter=64, hidden=32, classes=4, depth=2, units=32, stoch=8)
ACTIONS = 3

pytestmark = pytest.mark.gpu


def make_config(**options):
    defaults = {"size": "small", "network": SMALL, "dtype": "float32", "batch_size": 3, "batch_length": 6}
    return AgentConfig(**{**defaults, "imagination": 4, "lr": 3e-4, "warmup": 2, **options})


def make_batch(config, seed=0, length=None):
    generator = torch.Generator().manual_seed(seed)
    rows = (config.batch_size, (length or config.batch_length) + config.context)
    is_first = torch.rand(rows, generator=generator) < 0.1
    batch = Batch(
        image=torch.randint(0, 256, (*rows, 64, 64, 3), generator=generator, dtype=torch.uint8),
        action=torch.rand(*rows, ACTIONS, generator=generator) * 2 - 1,
        reward=torch.randn(rows, generator=generator),
        is_first=is_first,
        is_last=is_first.roll(-1, 1),
        is_terminal=torch.zeros_like(is_first),
        deter=torch.randn(*rows, config.sizes.deter, generator=generator).tanh(),
        stoch=torch.randint(0, config.sizes.classes, (*rows, config.sizes.stoch), generator=generator).to(torch.uint8),
        index=torch.arange(rows[0] * rows[1]).view(rows),
    )
    tensors = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return Batch(**{name: value.cuda() for name, value in tensors.items() if value is not None})


def images(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 64, 64, 3), generator=generator, dtype=torch.uint8).cuda()


def make_agent(seed=1, **options):
    return Agent(make_config(**options), ACTIONS, "cuda", seed=seed)


def saved(agent):
    """The agent's state as a checkpoint carries it."""
    buffer = io.BytesIO()
    torch.save(agent.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True, map_location="cpu")


def leaves(state):
    """Path -> tensor or plain value, of a nested state."""
    if not isinstance(state, dict):
        return {"": state}
    return {f"{key}/{path}": leaf for key, value in state.items() for path, leaf in leaves(value).items()}


def differing(a, b):
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    return [k for k in a if not (torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k])]


def assert_close(expected, found, rel=1e-4):
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(float(value), rel=rel, abs=1e-5), name


def assert_same_parameters(a, b, rel=1e-4):
    for (name, p), q in zip(a.model.named_parameters(), b.model.parameters()):
        assert float((p - q).detach().norm()) <= rel * float(p.detach().norm()) + 1e-6, name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_captured_updates_are_the_plain_ones(dtype):
    plain, captured = make_agent(dtype=dtype, capture=False), make_agent(dtype=dtype)
    assert not plain._captured
    start = {name: p.clone() for name, p in plain.model.named_parameters()}
    for seed in range(20):
        batch = make_batch(plain.config, seed)
        expected, latents = plain.update(batch)
        found, other = captured.update(batch)
        assert_close(expected, found)
        assert torch.equal(latents.stoch, other.stoch)
        assert torch.allclose(latents.deter, other.deter, atol=1e-4)
        assert torch.equal(plain.sampler.generator.get_state(), captured.sampler.generator.get_state())
    assert captured._captured["update"].graphs == 1
    assert captured.updates == plain.updates == 20
    assert_same_parameters(plain, captured)
    assert any(float((p - start[name]).norm()) > 1e-3 for name, p in captured.model.named_parameters())


def test_recording_executes_nothing():
    agent = make_agent()
    batch = make_batch(agent.config)
    agent.update(batch)
    before = saved(agent)
    names = ("image", "action", "reward", "is_first", "is_last", "is_terminal", "deter", "stoch")
    graph = _Graph(agent._update, agent.sampler.generator, tuple(getattr(batch, name) for name in names))
    torch.cuda.synchronize()
    assert differing(before, saved(agent)) == []
    graph.replay(tuple(graph.inputs))
    assert differing(before, saved(agent)) != []


def test_results_outlive_the_next_replay():
    agent = make_agent()
    batches = [make_batch(agent.config, seed) for seed in range(4)]
    agent.update(batches[0])
    metrics, latents = agent.update(batches[1])
    before = {name: float(value) for name, value in metrics.items()}, latents.deter.clone(), latents.stoch.clone()
    for batch in batches[2:]:
        agent.update(batch)
    assert before[0] == {name: float(value) for name, value in metrics.items()}
    assert torch.equal(before[1], latents.deter)
    assert torch.equal(before[2], latents.stoch)


def test_a_replay_never_waits_for_the_device():
    agent = make_agent(dtype="bfloat16")
    batch, first = make_batch(agent.config), torch.ones(4, dtype=torch.bool, device="cuda")
    carry = agent.initial(4)
    for _ in range(2):
        agent.update(batch)
        agent.act(images(4), first, carry)
    image = images(4)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        agent.update(batch)
        agent.act(image, first, carry)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_state_is_loaded_into_recorded_graphs():
    agent, other = make_agent(), make_agent(seed=2)
    for seed in range(3):
        agent.update(make_batch(agent.config, seed))
        other.update(make_batch(agent.config, seed + 10))
    other.load_state_dict(saved(agent))
    assert other.updates == 3
    fresh = make_agent(seed=3)
    fresh.load_state_dict(saved(agent))
    for seed in range(3, 6):
        batch = make_batch(agent.config, seed)
        expected = agent.update(batch)[0]
        assert_close(expected, other.update(batch)[0], rel=1e-5)
        assert_close(expected, fresh.update(batch)[0], rel=1e-5)
    for resumed in (other, fresh):
        assert_same_parameters(agent, resumed, rel=1e-5)
        assert torch.equal(agent.sampler.generator.get_state(), resumed.sampler.generator.get_state())


def test_batches_of_other_shapes():
    plain, captured = make_agent(capture=False), make_agent()
    for length in (6, 5, 6, 4, 5, 6, 4, 5, 4):
        batch = make_batch(plain.config, length, length)
        assert_close(plain.update(batch)[0], captured.update(batch)[0])
    assert captured._captured["update"].graphs == 2  # the third shape runs without
    assert_same_parameters(plain, captured)


@pytest.mark.parametrize("mode", ["sample", "mean"])
def test_captured_acting_is_the_plain_one(mode):
    plain, captured = make_agent(capture=False), make_agent()
    carries = [plain.initial(4), captured.initial(4)]
    for step in range(6):
        first = torch.tensor([step == 0, step == 0, step in (0, 3), step == 0], device="cuda")
        action, carries[0], latents = plain.act(images(4, step), first, carries[0], mode)
        other, carries[1], found = captured.act(images(4, step), first, carries[1], mode)
        assert torch.allclose(action, other, atol=1e-5)
        assert torch.allclose(latents.deter, found.deter, atol=1e-5)
        assert torch.equal(latents.stoch, found.stoch)
        if step == 4:  # an update in between reaches the recorded graph
            for agent in (plain, captured):
                agent.update(make_batch(plain.config))
                agent.update(make_batch(plain.config))
    assert captured._captured[mode].graphs == 1


def test_a_carry_is_taken_over_wherever_it_comes_from():
    plain, captured = make_agent(capture=False), make_agent()
    first = torch.zeros(4, dtype=torch.bool, device="cuda")
    carries = [plain.initial(4), captured.initial(4)]
    kept = []
    for step in range(8):
        found = []
        for k, agent in enumerate((plain, captured)):
            if step == 4:  # parts of it replaced, as by a random action
                carries[k] = dataclasses.replace(carries[k], action=carries[k].action * 0.5)
            if step == 5:  # an older one
                carries[k] = kept[k]
            if step == 6:  # changed in place
                carries[k].action.mul_(0.5)
            action, carries[k], _ = agent.act(images(4, step), first, carries[k])
            found.append((action, carries[k].state.deter, carries[k].state.stoch))
        if step == 2:
            kept = list(carries)
        for a, b in zip(*found):
            assert torch.allclose(a, b, atol=1e-5), step


def test_another_sampler_leaves_the_agents_draws_alone():
    plain, captured = make_agent(capture=False), make_agent()
    samplers = [RandomSampler(torch.device("cuda"), 5) for _ in range(2)]
    own = captured.sampler.generator.get_state()
    first = torch.zeros(2, dtype=torch.bool, device="cuda")
    for step in range(4):
        a = plain.act(images(2, step), first, plain.initial(2), sampler=samplers[0])
        b = captured.act(images(2, step), first, captured.initial(2), sampler=samplers[1])
        assert torch.allclose(a[0], b[0], atol=1e-5)
        assert torch.equal(a[2].stoch, b[2].stoch)
    assert torch.equal(own, captured.sampler.generator.get_state())
    assert torch.equal(samplers[0].generator.get_state(), samplers[1].generator.get_state())
    assert not torch.equal(own, samplers[1].generator.get_state())


def test_the_first_call_runs_plainly_and_the_second_records():
    calls = []

    def function(x):
        calls.append(x.shape)
        return (x + torch.rand(x.shape, generator=generator, device=x.device),)

    generator = torch.Generator("cuda").manual_seed(0)
    captured = Captured(function, generator)
    x = torch.ones(3, device="cuda")
    values = [captured(x * i)[0] - i for i in range(4)]
    assert len(calls) == 2
    generator.manual_seed(0)
    for value in values:
        assert torch.allclose(value, torch.rand(3, generator=generator, device="cuda"), atol=1e-6)


def test_float32_takes_no_tf32(monkeypatch):
    """Allowed or not, the same numbers, plainly and from a graph; and what is allowed stays so."""
    batch, results = make_batch(make_config()), []
    for allowed in (False, True):
        for backend in (torch.backends.cudnn, torch.backends.cuda.matmul):
            monkeypatch.setattr(backend, "allow_tf32", allowed)
        agent = make_agent()
        for _ in range(3):
            agent.update(batch)
        _, carry, _ = agent.act(images(2), torch.ones(2, dtype=torch.bool, device="cuda"), agent.initial(2), "mean")
        results.append([carry.state.deter, *(p.detach() for p in agent.model.parameters())])
        assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == allowed
    assert all(torch.equal(a, b) for a, b in zip(*results))
