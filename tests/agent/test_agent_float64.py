"""The agent in float64, by which the rounding of the others is measured."""

from dataclasses import replace

import pytest
import torch

from genreward_fast.agent import Agent, AgentConfig, NetworkSize, RandomSampler, RecordedSampler, RecordingSampler
from genreward_fast.agent.rssm import RSSM, State
from genreward_fast.bench.contestant import ACTIONS
from genreward_fast.bench.ours import random_batch
from genreward_fast.errors import UserError
from genreward_fast.kernels.triton_support import runs_triton

SMALL = NetworkSize(deter=64, hidden=16, classes=4, depth=2, units=16, stoch=4, blocks=4)
CPU = torch.device("cpu")


def config(**options) -> AgentConfig:
    shape = {"batch_size": 2, "batch_length": 4, "imagination": 3}
    return AgentConfig(network=SMALL, size="small", warmup=0, **shape | options)


def in_float64(record):
    """A dataclass of tensors with its floating ones in float64."""
    double = {n: x.double() for n, x in vars(record).items() if x is not None and x.is_floating_point()}
    return replace(record, **double)


def with_ends(batch):
    """The batch with an episode that ends inside it."""
    end = torch.zeros_like(batch.is_last)
    end[:, 2] = True
    return replace(batch, is_last=end, is_terminal=end, is_first=end.roll(1, 1))


def updates(dtype, count, seed=0, **options):
    """An agent in float32 that draws, one in `dtype` that is given its draws, and the metrics and latents of both."""
    drawing, given = (Agent(config(dtype=kind, **options), ACTIONS, CPU, seed=seed) for kind in ("float32", dtype))
    found = []
    for number in range(count):
        batch = with_ends(random_batch(drawing.config, CPU, seed=number))
        recording = RecordingSampler(drawing.sampler)
        found.append(
            (drawing.update(batch, sampler=recording), given.update(batch, RecordedSampler(recording.draws())))
        )
    return drawing, given, found


def test_it_starts_from_the_same_numbers():
    single, double = (Agent(config(dtype=dtype), ACTIONS, CPU, seed=3) for dtype in ("float32", "float64"))
    theirs = single.model.state_dict() | dict(single.model.named_buffers())
    ours = double.model.state_dict() | dict(double.model.named_buffers())
    assert theirs.keys() == ours.keys()
    for name, value in theirs.items():
        assert ours[name].dtype == torch.float64
        assert torch.equal(ours[name], value.double())
    assert {x.dtype for x in (double.model.flat.buffer, double.model.slow.buffer, *double.optimizer.buffers)} == {
        torch.float64
    }
    assert double.model.casts is None
    assert not runs_triton(double.model.flat.buffer)


@pytest.mark.parametrize("options", [{}, {"slow_target": True}, {"continue_discount": False}, {"imagination": 1}])
def test_it_agrees_with_float32(options):
    _, double, found = updates("float64", 2, **options)
    for (theirs, latents), (ours, exact) in found:
        for name, value in theirs.items():
            assert ours[name].dtype == torch.float64
            if name.startswith("loss/"):
                assert abs(value.item() - ours[name].item()) <= 1e-4 * abs(ours[name].item()), name
        assert exact.deter.dtype == torch.float64
        assert torch.allclose(latents.deter.double(), exact.deter, atol=1e-5)
        assert torch.equal(latents.stoch, exact.stoch)
    assert double.updates == 2


def test_nothing_is_rounded_on_the_way(made_floats):
    single, double = (Agent(config(dtype=dtype), ACTIONS, CPU) for dtype in ("float32", "float64"))
    batch, recording = random_batch(single.config, CPU), RecordingSampler(single.sampler)
    with made_floats() as floats:
        single.update(batch, sampler=recording)
    assert torch.float32 in floats.made  # it does see them
    draws = in_float64(recording.draws())
    with made_floats() as floats:
        double.update(in_float64(batch), sampler=RecordedSampler(draws))
    floats.made.pop(torch.float64)
    assert floats.made == {}


def test_it_draws_for_itself():
    agent = Agent(config(dtype="float64"), ACTIONS, CPU)
    metrics, latents = agent.update(random_batch(agent.config, CPU))
    assert all(value.isfinite() for name, value in metrics.items() if name.startswith("loss/"))
    assert latents.deter.dtype == torch.float64
    image = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    action, carry, _ = agent.act(image, torch.ones(3, dtype=torch.bool), agent.initial(3))
    assert action.dtype == carry.state.deter.dtype == torch.float64
    other = Agent(config(dtype="float64"), ACTIONS, CPU, seed=1)
    other.load_state_dict(agent.state_dict())
    assert torch.equal(other.model.flat.buffer, agent.model.flat.buffer)


def test_the_scans_gradient_is_that_of_its_steps():
    """The gradient written by hand beside autograd's of the layers one by one, where nothing hides in rounding."""
    tokens, batch, steps = 5, 2, 3
    rssm = RSSM(config(dtype="float64"), ACTIONS, tokens)
    for parameter in rssm.double().parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    draw = lambda *shape: torch.randn(shape, dtype=torch.float64)  # noqa: E731
    start = State(draw(batch, SMALL.deter).tanh(), draw(batch, SMALL.stoch, SMALL.classes))
    seen, action = draw(batch, steps, tokens).requires_grad_(), draw(batch, steps, ACTIONS)
    reset = torch.tensor([[False, False, True], [False, True, False]])
    recording = RecordingSampler(RandomSampler(CPU, 0))
    observed = rssm.observe(start, seen, action, reset, recording)

    state, deters, stochs, logits = start, [], [], []
    for t in range(steps):
        keep = ~reset[:, t, None]
        state = State(state.deter * keep, state.stoch * keep.unsqueeze(-1))
        deter = rssm.core(state, action[:, t] * keep)
        logit = rssm._latents(rssm.posterior_logit(rssm.posterior(torch.cat([deter, seen[:, t]], -1))))
        probs = logit.softmax(-1) * (1 - rssm.unimix) + rssm.unimix / SMALL.classes
        drawn = torch.nn.functional.one_hot(observed.index[:, t], SMALL.classes) + (probs - probs.detach())
        state = State(deter, drawn)
        deters.append(deter)
        stochs.append(drawn)
        logits.append(logit)
    found = observed.state.deter, observed.state.stoch, observed.logit
    expected = tuple(torch.stack(x, 1) for x in (deters, stochs, logits))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    weights = [draw(*x.shape) for x in found]
    leaves = [seen, *(p for n, p in rssm.named_parameters() if not n.startswith("prior"))]
    by_hand, by_autograd = (torch.autograd.grad(outputs, leaves, weights) for outputs in (found, expected))
    torch.testing.assert_close(by_hand, by_autograd, rtol=1e-9, atol=1e-9)


def test_no_run_takes_it():
    from genreward_fast.config import Overrides, resolve

    with pytest.raises(UserError, match="float64 is for checks"):
        resolve("tiny", Overrides(dtype="float64"))
