"""The kernels' form of the scan and of imagination beside the plain ones; all of it runs in Triton's interpreter or on
a GPU, but for the test that starts the interpreter."""

import pytest
import torch
import torch.nn.functional as F

from genreward_fast.agent import (
    Agent,
    AgentConfig,
    Draws,
    NetworkSize,
    RandomSampler,
    RecordedSampler,
    RecordingSampler,
)
from genreward_fast.agent import imagination as imagination_module
from genreward_fast.agent.heads import Actor
from genreward_fast.agent.nets import initialize
from genreward_fast.agent.rssm import RSSM, State
from genreward_fast.kernels.triton_support import references_only

SIZES = [
    NetworkSize(deter=64, hidden=16, classes=4, depth=2, units=16, stoch=4, blocks=4),
    NetworkSize(deter=128, hidden=32, classes=6, depth=2, units=32, stoch=8, blocks=8),
    NetworkSize(deter=64, hidden=48, classes=24, depth=2, units=48, stoch=2, blocks=4),
]
# Layers too wide for `dense_rows`.
WIDE = NetworkSize(deter=64, hidden=272, classes=4, depth=2, units=272, stoch=4, blocks=4)
ACTIONS, TOKENS = 3, 40
LIMIT = 1e-5


def filled(module, generator):
    """With parameters that are no round numbers."""
    initialize(module, generator)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module


def config_of(size, **options):
    return AgentConfig(size="small", network=size, dtype="float32", **options)


def start(size, count, generator, device):
    index = torch.randint(0, size.classes, (count, size.stoch), generator=generator)
    deter = torch.randn(count, size.deter, generator=generator).tanh()
    return State(deter.to(device), F.one_hot(index, size.classes).float().to(device))


def error(found, expected):
    """Relative RMS error; infinite if only one of them is missing or zero."""
    found, expected = found.detach().double(), expected.detach().double()
    assert found.shape == expected.shape
    if not expected.any():
        return 0.0 if not found.any() else float("inf")
    return ((found - expected).norm() / expected.norm()).item()


def observed(rssm, state, tokens, action, reset, sampler, weights):
    """Outputs, and gradients by the inputs and all parameters that take part."""
    tokens, action = tokens.clone().requires_grad_(), action.clone().requires_grad_()
    result = rssm.observe(state, tokens, action, reset, sampler)
    outputs = result.state.deter, result.state.stoch, result.logit
    loss = sum((x * w).sum() for x, w in zip(outputs, weights))
    named = {name: p for name, p in rssm.named_parameters() if not name.startswith("prior")}
    found = torch.autograd.grad(loss, [tokens, action, *named.values()])
    results = dict(zip(("deter", "stoch", "logits"), outputs)) | dict(zip(["tokens", "action", *named], found))
    return results, result.index


@pytest.mark.parametrize(
    ("size", "batch", "steps", "resets"),
    [(SIZES[0], 3, 3, "some"), (SIZES[1], 1, 1, "none"), (SIZES[2], 17, 1, "all"), (SIZES[2], 2, 2, "some")],
)
def test_on_triton_fused_scan_is_scan(size, batch, steps, resets, triton_device, fresh_generator, calls):
    rssm = filled(RSSM(config_of(size), ACTIONS, TOKENS), fresh_generator).to(triton_device)
    state = start(size, batch, fresh_generator, triton_device)
    tokens, action = (
        torch.randn(batch, steps, n, generator=fresh_generator).to(triton_device) for n in (TOKENS, ACTIONS)
    )
    chance = {"some": 0.3, "none": 0.0, "all": 1.1}[resets]
    reset = (torch.rand(batch, steps, generator=fresh_generator) < chance).to(triton_device)
    shapes = (size.deter,), (size.stoch, size.classes), (size.stoch, size.classes)
    weights = [torch.randn(batch, steps, *shape, generator=fresh_generator).to(triton_device) for shape in shapes]
    inputs = state, tokens, 1.5 * action, reset
    recording = RecordingSampler(RandomSampler(triton_device, 3))
    found, index = observed(rssm, *inputs, recording, weights)
    assert calls["fused_scan"] == 1
    recorded = torch.stack(recording._latents["posterior"], 1)
    assert torch.equal(recorded, index)
    draws = RecordedSampler(Draws(recorded, torch.empty(0), torch.empty(0)))
    with references_only():
        expected, plain_index = observed(rssm, *inputs, draws, weights)
    assert calls["fused_scan"] == 1
    again, forced_index = observed(rssm, *inputs, draws, weights)
    assert torch.equal(index, plain_index)
    assert torch.equal(index, forced_index)
    # The same draws, whether they are drawn or given, give the same bits.
    assert not [name for name in found if not torch.equal(found[name], again[name])]
    errors = {name: error(found[name], expected[name]) for name in expected}
    wrong = {name: value for name, value in errors.items() if not value <= LIMIT}
    assert not wrong, wrong


def test_on_triton_gradients_given_as_one_number(triton_device, fresh_generator, calls):
    """Autograd gives those of sums expanded: no row of them lies in memory."""
    size = SIZES[0]
    rssm = filled(RSSM(config_of(size), ACTIONS, TOKENS), fresh_generator).to(triton_device)
    state = start(size, 5, fresh_generator, triton_device)
    tokens, action = (torch.randn(5, 2, n, generator=fresh_generator).to(triton_device) for n in (TOKENS, ACTIONS))
    reset = torch.zeros(5, 2, dtype=torch.bool, device=triton_device)
    index = torch.randint(0, size.classes, (5, 2, size.stoch), generator=fresh_generator).to(triton_device)
    sampler = RecordedSampler(Draws(index, torch.empty(0), torch.empty(0)))

    def gradients():
        named = {name: p for name, p in rssm.named_parameters() if not name.startswith("prior")}
        result = rssm.observe(state, tokens, action, reset, sampler)
        # The sum of one-hot draws is constant, but a gradient through them that is read elsewhere is not.
        loss = result.state.deter.sum() + result.state.stoch.sum() + result.logit.sum()
        return dict(zip(named, torch.autograd.grad(loss, list(named.values()))))

    found = gradients()
    with references_only():
        expected = gradients()
    wrong = [name for name in found if not error(found[name], expected[name]) <= LIMIT]
    assert not wrong, wrong


@pytest.mark.parametrize(("size", "count"), [(SIZES[0], 1), (SIZES[1], 17), (SIZES[2], 5), (WIDE, 3)])
def test_on_triton_imagination_is_the_plain_one(size, count, triton_device, fresh_generator):
    steps = 3
    config = config_of(size)
    rssm = filled(RSSM(config, ACTIONS, TOKENS), fresh_generator).to(triton_device)
    actor = filled(Actor(config, ACTIONS), fresh_generator).to(triton_device)
    state = start(size, count, fresh_generator, triton_device)

    def fast(sampler):
        dreamed = torch.full((steps + 1, count, config.feature_size), float("nan"), device=triton_device)
        dreamed[0] = state.features()
        result = imagination_module.imagine(rssm, actor, dreamed, sampler)
        assert not dreamed.isnan().any()
        assert torch.equal(dreamed[1:].transpose(0, 1), result.state.features())
        return result

    recording = RecordingSampler(RandomSampler(triton_device, 3))
    found = fast(recording)
    recording._latents["posterior"].append(torch.empty(0))
    draws = recording.draws()
    assert torch.equal(draws.prior, found.state.stoch.argmax(-1))
    assert torch.equal(draws.action, found.action)
    given = RecordedSampler(draws)

    def policy(state, step):
        normal = actor(state.features())
        return given.action(normal.mean, normal.stddev, step)

    with references_only(), torch.no_grad():
        expected = rssm.imagine(state, policy, steps, given)
        # The recorded actions are what the policy draws where the plain path comes to.
        own = RandomSampler(triton_device, 3)
        own.sequence("prior", (count, steps, size.stoch), triton_device)
        noise = own.noise((count, steps, ACTIONS), triton_device)[0]
        befores = [state] + [State(expected.state.deter[:, t], expected.state.stoch[:, t]) for t in range(steps - 1)]
        normals = [actor(before.features()) for before in befores]
        actions = torch.stack([n.mean + n.stddev * noise[:, t] for t, n in enumerate(normals)], 1)
    assert error(found.action, actions) <= LIMIT
    again = fast(given)
    for a in (found, again):
        assert torch.equal(a.state.stoch, expected.state.stoch)
        assert torch.equal(a.action, expected.action)
        assert error(a.state.deter, expected.state.deter) <= LIMIT
        assert error(a.logit, expected.logit) <= LIMIT


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("plain", [True, False])
def test_acting_changes_no_parameter(count, plain):
    """An expanded bias may be the parameter itself: what is added to it in place is then learnt by acting."""
    agent = Agent(
        config_of(SIZES[0], batch_size=2, batch_length=2, imagination=1, capture=False), ACTIONS, "cpu", seed=1
    )
    before = {name: value.clone() for name, value in agent.model.state_dict().items()}
    image = torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8)
    first, carry = torch.ones(count, dtype=torch.bool), agent.initial(count)

    def act():
        nonlocal carry
        for mode in ("sample", "mean"):
            _, carry, _ = agent.act(image, first, carry, mode=mode)

    if plain:
        with references_only():
            act()
    else:
        act()
    after = agent.model.state_dict()
    assert not [name for name in before if not torch.equal(before[name], after[name])]


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__, "on_triton or acting", 300)
