from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from genreward_fast.kernels import rssm_observe as module
from genreward_fast.kernels import rssm_tiles
from genreward_fast.kernels.rssm_step import StepValues, StepWeights, observe_step_reference
from genreward_fast.kernels.triton_support import INTERPRETED

UNIMIX = 0.01
# Rows, steps, deter, hidden, blocks, latents, classes.
SHAPES = [
    (1, 1, 64, 16, 4, 4, 4),
    (5, 2, 128, 32, 8, 8, 6),
    (17, 2, 64, 64, 4, 2, 24),
    (33, 1, 128, 16, 8, 4, 4),
    (3, 3, 64, 48, 4, 4, 12),
]
WIDTHS = {"12M": (2048, 256, 8, 32, 16), "25M": (3072, 384, 8, 32, 24), "400M": (12288, 1536, 8, 32, 96)}
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
# Triton's interpreter cannot multiply matrices of bfloat16.
DTYPES = [torch.float32] if INTERPRETED else [torch.float32, torch.bfloat16]


def observe(weights, inputs, forced):
    """All launches of T steps, in the order of time."""
    reset, deter, stoch = inputs["reset"], inputs["deter"], inputs["stoch"]
    batch, steps, latents = inputs["index"].shape
    values = StepValues.empty(weights, batch, steps, latents)
    values.index.copy_(inputs["index"]) if forced else values.index.fill_(-1)
    size = weights.deter_in.shape[0]
    module.project(weights, deter, None, reset[:, 0], values, -1)
    for t in range(steps):
        module.stoch_embed(weights, stoch, reset[:, t], values.embedded[:, t, size:])
        module.hidden(weights, deter, reset[:, t], inputs["action"][:, t], values, t)
        module.gates(weights, deter, reset[:, t], values, t)
        deter = values.deter[:, t]
        later = reset[:, t + 1] if t + 1 < steps else None
        module.project(weights, deter, inputs["evidence"][:, t], later, values, t)
        module.sample(weights, UNIMIX, None if forced else inputs["uniform"][:, t], values, t)
        stoch = values.stoch[:, t]
    return values


def exact(x):
    return x.cpu().double() if x.is_floating_point() else x.cpu()


def expected(weights, inputs, index):
    """The same by the reference in float64, with the classes of `index`."""
    weights = StepWeights(*(exact(getattr(weights, field.name)) for field in fields(weights)))
    inputs = {name: exact(value) for name, value in inputs.items()}
    deter, stoch, steps = inputs["deter"], inputs["stoch"], []
    for t in range(index.shape[1]):
        given = (inputs[name][:, t] for name in ("reset", "action", "evidence"))
        steps.append(observe_step_reference(weights, UNIMIX, deter, stoch, *given, None, index[:, t].cpu()))
        deter, stoch = steps[-1].deter, steps[-1].stoch
    return StepValues(*(torch.stack([getattr(s, f.name) for s in steps], 1) for f in fields(StepValues)))


def check_draws(values, uniform, limit):
    """Each number lies in the interval of the class drawn, whose ends are known to a certain precision."""
    batch, steps, latents = values.index.shape
    index = values.index.cpu().unsqueeze(-1)
    logits = exact(values.logits).view(batch, steps, latents, -1)
    probs = logits.softmax(-1) * (1 - UNIMIX) + UNIMIX / logits.shape[-1]
    upper = probs.cumsum(-1).gather(-1, index).squeeze(-1)
    assert (uniform.cpu() <= upper + limit).all()
    assert (upper - probs.gather(-1, index).squeeze(-1) <= uniform.cpu() + limit).all()
    onehot = torch.nn.functional.one_hot(index.squeeze(-1), logits.shape[-1]).flatten(2)
    assert torch.equal(exact(values.stoch), onehot.double())


def check(case, forced, relative_rms):
    weights, inputs = case
    found = observe(weights, inputs, forced)
    for field in fields(StepValues):
        x = getattr(found, field.name)
        assert not x.isnan().any(), field.name
    wanted = expected(weights, inputs, found.index)
    dtype = weights.logit.dtype
    for field in fields(StepValues):
        a, b = exact(getattr(found, field.name)), getattr(wanted, field.name)
        if field.name == "index":
            assert torch.equal(a, b)
        else:
            assert a.shape == b.shape
            assert relative_rms(a, b) < LIMITS[dtype], field.name
    if forced:
        assert torch.equal(found.index, inputs["index"])
    else:
        check_draws(found, inputs["uniform"], 1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_triton_agrees_with_float64(shape, dtype, rssm_case, triton_device, poisoned, fresh_generator, relative_rms):
    case = rssm_case(*shape, fresh_generator, dtype, triton_device)
    check(case, shape[0] % 2 == 0, relative_rms)


@pytest.mark.parametrize("forced", [True, False])
@pytest.mark.parametrize("rows", ["first", "middle", "all", "none"])
def test_on_triton_resets(rows, forced, rssm_case, triton_device, poisoned, fresh_generator, relative_rms):
    weights, inputs = rssm_case(5, 3, 64, 16, 4, 4, 4, fresh_generator, torch.float32, triton_device)
    reset = inputs["reset"].fill_(rows == "all")
    if rows in ("first", "middle"):
        reset[::2, 0 if rows == "first" else 1] = True
    # What is thrown away must not count, whatever it is.
    inputs["deter"][reset[:, 0]] = float("nan")
    inputs["stoch"][reset[:, 0]] = float("nan")
    check((weights, inputs), forced, relative_rms)


@pytest.mark.parametrize(("latents", "classes"), [(3, 6), (1, 4), (5, 3), (1, 1), (7, 17)])
@pytest.mark.parametrize("forced", [True, False])
def test_on_triton_latents_that_fill_no_tile(
    latents, classes, forced, rssm_case, triton_device, poisoned, fresh_generator, relative_rms
):
    weights, inputs = rssm_case(5, 1, 64, 16, 4, latents, classes, fresh_generator, torch.float32, triton_device)
    values = StepValues.empty(weights, 5, 1, latents)
    values.index.copy_(inputs["index"]) if forced else values.index.fill_(-1)
    values.evidence.copy_(inputs["evidence"])
    module.sample(weights, UNIMIX, None if forced else inputs["uniform"][:, 0], values, 0)
    x = exact(inputs["evidence"])
    unit = torch.nn.functional.rms_norm(x, x.shape[2:], exact(weights.posterior_scale), rssm_tiles.NORM_EPS)
    logits = torch.nn.functional.linear(torch.nn.functional.silu(unit), exact(weights.logit), exact(weights.logit_bias))
    assert relative_rms(values.logits.cpu(), logits) < 1e-5
    check_draws(values, inputs["uniform"] if not forced else middle_of(values), 1e-5)


def middle_of(values):
    """A number that draws the class that is in `index`."""
    batch, steps, latents = values.index.shape
    logits = exact(values.logits).view(batch, steps, latents, -1)
    probs = logits.softmax(-1) * (1 - UNIMIX) + UNIMIX / logits.shape[-1]
    return (probs.cumsum(-1) - probs / 2).gather(-1, values.index.cpu().unsqueeze(-1)).squeeze(-1)


def test_on_triton_is_deterministic(rssm_case, triton_device, fresh_generator):
    case = rssm_case(5, 2, 64, 16, 4, 4, 4, fresh_generator, torch.float32, triton_device)
    first, second = (observe(*case, False) for _ in range(2))
    for field in fields(StepValues):
        assert torch.equal(getattr(first, field.name), getattr(second, field.name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_reference_draws_and_rounds(dtype, rssm_case, fresh_generator, relative_rms):
    """In the dtype of the states it is near its float64 form, and its draws are those of the distribution."""
    weights, inputs = rssm_case(5, 1, 64, 16, 4, 4, 4, fresh_generator, dtype)
    given = (inputs[name][:, 0] for name in ("reset", "action", "evidence", "uniform"))
    found = observe_step_reference(weights, UNIMIX, inputs["deter"], inputs["stoch"], *given)
    found = StepValues(*(getattr(found, field.name).unsqueeze(1) for field in fields(StepValues)))
    check_draws(found, inputs["uniform"], 1e-5)
    wanted = expected(weights, inputs, found.index)
    for field in fields(StepValues):
        if field.name not in ("index", "squares"):
            assert getattr(found, field.name).dtype == dtype
            assert relative_rms(getattr(found, field.name), getattr(wanted, field.name)) < LIMITS[dtype], field.name


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


def test_dependent_launches_need_a_chip_that_has_them(monkeypatch):
    if INTERPRETED:
        pytest.skip("the interpreter launches nothing")
    options = rssm_tiles.launch_options.__wrapped__
    assert options(torch.device("cpu")) == {"PDL": False}
    for capability in ((8, 0), (8, 6), (8, 9)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert options(torch.device("cuda")) == {"PDL": False}
    for capability in ((9, 0), (12, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert options(torch.device("cuda")) == {"PDL": True, "launch_pdl": True}


QUICK = [("12M", torch.bfloat16)]


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        pytest.param(size, dtype, marks=() if (size, dtype) in QUICK else pytest.mark.slow)
        for size in WIDTHS
        for dtype in (torch.bfloat16, torch.float32)
    ],
)
def test_compiles_for_every_chip(capability, size, dtype, rssm_case, compile_launches):
    weights, inputs = on_meta(rssm_case, size, dtype)

    def call():
        observe(weights, inputs, True)
        observe(weights, inputs, False)

    assert compile_launches(call, [module], capability) == ["_gates", "_hidden", "_linear", "_project", "_sample"]


def on_meta(rssm_case, size, dtype):
    """Widths of a published size, without numbers."""
    with torch.device("meta"):
        return rssm_case(16, 2, *WIDTHS[size], dtype=dtype, device="meta")
