from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from genreward_fast.kernels import rssm_observe_backward as module
from genreward_fast.kernels.rssm_observe_backward import Norms, StepGradients
from genreward_fast.kernels.rssm_step import StepValues, StepWeights, observe_step_reference
from genreward_fast.kernels.rssm_tiles import NORM_EPS
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
# In bfloat16 the values that the gradient reads are rounded, as well as itself, at every step.
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
# Triton's interpreter cannot multiply matrices of bfloat16.
DTYPES = [torch.float32] if INTERPRETED else [torch.float32, torch.bfloat16]


def exact(x):
    return x.cpu().double() if x.is_floating_point() else x.cpu()


def outside(case, generator):
    """The gradients that reach deter, stoch and logits of all steps from outside."""
    values, dtype = case[1], case[0].logit.dtype
    (batch, steps), size, flat = values["reset"].shape, values["deter"].shape[1], values["stoch"].shape[1]
    shapes = (batch, steps, size), (batch, steps, flat), (batch, steps, flat)
    return [torch.randn(shape, generator=generator).to(dtype).to(values["deter"].device) for shape in shapes]


def reference(case, given):
    """The values of all steps by the reference, in float64, and the gradients by some of them by autograd."""
    weights = StepWeights(*(exact(getattr(case[0], field.name)) for field in fields(StepWeights)))
    inputs = {name: exact(value) for name, value in case[1].items()}
    first = inputs["deter"].clone().requires_grad_()
    deter, stoch, steps = first, inputs["stoch"], []
    for t in range(inputs["reset"].shape[1]):
        index = inputs["index"][:, t]
        rest = (inputs[name][:, t] for name in ("reset", "action", "evidence"))
        steps.append(observe_step_reference(weights, UNIMIX, deter, stoch, *rest, None, index))
        deter, stoch = steps[-1].deter, steps[-1].stoch
    values = StepValues(*(torch.stack([getattr(s, f.name) for s in steps], 1) for f in fields(StepValues)))
    outputs = (values.deter, values.stoch, values.logits)
    loss = sum((x * exact(g)).sum() for x, g in zip(outputs, given))
    names = ("logits", "evidence", "gates", "hidden", "embedded")
    found = torch.autograd.grad(loss, [first, *(getattr(s, n) for n in names for s in steps)])
    count = len(steps)
    by = {n: torch.stack(found[1 + i * count : 1 + (i + 1) * count], 1) for i, n in enumerate(names)}
    return values, by | {"first": found[0]}


def backward(case, values, given):
    """All launches of T steps, in the reverse order of time."""
    weights, inputs = case
    by_deter, by_stoch, by_logits = given
    latents, reset = inputs["index"].shape[2], inputs["reset"]
    grads = StepGradients.prepare(weights, values)
    # The last step's has no step after it: it is not one of the launches.
    logits = exact(values.logits[:, -1]).unflatten(1, (latents, -1))
    probs, by_draw = logits.softmax(-1), exact(by_stoch[:, -1]).view_as(logits)
    through = (1 - UNIMIX) * probs * (by_draw - (probs * by_draw).sum(-1, keepdim=True))
    grads.logits[:, -1] = (through.flatten(1) + exact(by_logits[:, -1])).to(by_logits)
    for t in reversed(range(reset.shape[1])):
        old = values.deter[:, t - 1] if t else inputs["deter"]
        later = reset[:, t + 1] if t + 1 < reset.shape[1] else None
        module.seen(weights, grads, t)
        module.deter(weights, by_deter[:, t], old, reset[:, t], later, values, grads, t)
        module.gates(weights, grads, t)
        module.hidden(weights, reset[:, t], grads, t)
        if t:
            more = by_stoch[:, t - 1], by_logits[:, t - 1]
            module.embedded(weights, UNIMIX, *more, reset[:, t], values, grads, t)
    return grads


def through(norm):
    """The gradient by a norm's input, of what the loop keeps of it."""
    unit, by_unit = exact(norm.unit), exact(norm.by_unit)
    mean = exact(norm.along).sum(-1, keepdim=True) / unit.shape[-1]
    return (exact(norm.rate).unsqueeze(-1) * (by_unit - unit * mean)).flatten(2)


def poison(monkeypatch):
    """Fills what is made for results with NaN."""
    for name in ("empty", "empty_like"):
        make = getattr(torch, name)

        def poisoned(*args, make=make, **options):
            made = make(*args, **options)
            return made.fill_(float("nan")) if made.is_floating_point() else made

        monkeypatch.setattr(torch, name, poisoned)


def check(case, generator, relative_rms, monkeypatch, limit):
    weights, inputs = case
    given = outside(case, generator)
    values, wanted = reference(case, given)
    dtype, device = weights.logit.dtype, weights.logit.device
    kept = StepValues(
        *(
            x.detach().to(device, torch.float32 if f.name == "squares" else dtype if x.is_floating_point() else x.dtype)
            for f in fields(StepValues)
            for x in (getattr(values, f.name),)
        )
    )
    poison(monkeypatch)
    grads = backward(case, kept, given)
    for part in (grads, grads.posterior, grads.hidden, grads.embedded):
        for field in fields(part):
            value = getattr(part, field.name)
            assert isinstance(value, Norms) or not value.isnan().any(), field.name
    # By the deter before the first step, of which the loop leaves what passes its embedding to whoever wants it.
    by_embedded = wanted["embedded"][:, 0, : weights.deter_in.shape[0]] @ exact(weights.deter_in)
    first = wanted["first"] - by_embedded.masked_fill(inputs["reset"][:, :1].cpu(), 0)
    pairs = {
        "logits": (exact(grads.logits), wanted["logits"]),
        "gates": (exact(grads.gates), wanted["gates"]),
        "evidence": (through(grads.posterior), wanted["evidence"]),
        "hidden": (through(grads.hidden), wanted["hidden"]),
        "embedded": (through(grads.embedded), wanted["embedded"]),
        "first": (exact(grads.state[:, 0]), first),
    }
    for name, (found, expected) in pairs.items():
        assert found.shape == expected.shape
        if not expected.any():  # as by the state before a step in which every row is reset
            assert not found.any(), name
        else:
            assert relative_rms(found, expected) < limit, name
    return grads


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_triton_agrees_with_autograd_in_float64(
    shape, dtype, rssm_case, triton_device, fresh_generator, relative_rms, monkeypatch
):
    case = rssm_case(*shape, fresh_generator, dtype, triton_device)
    check(case, fresh_generator, relative_rms, monkeypatch, LIMITS[dtype])


@pytest.mark.parametrize("rows", ["first", "middle", "all", "none"])
def test_on_triton_resets(rows, rssm_case, triton_device, fresh_generator, relative_rms, monkeypatch):
    weights, inputs = rssm_case(5, 3, 64, 16, 4, 4, 4, fresh_generator, torch.float32, triton_device)
    reset = inputs["reset"].fill_(rows == "all")
    if rows in ("first", "middle"):
        reset[::2, 0 if rows == "first" else 1] = True
    # What is thrown away must not count, whatever it is.
    inputs["deter"][reset[:, 0]] = float("nan")
    grads = check((weights, inputs), fresh_generator, relative_rms, monkeypatch, 1e-5)
    assert not grads.state[:, 0][reset[:, 0]].any()


@pytest.mark.parametrize(("latents", "classes"), [(3, 6), (1, 4), (5, 3), (7, 17)])
def test_on_triton_latents_that_fill_no_tile(latents, classes, rssm_case, triton_device, fresh_generator, relative_rms):
    """`embedded` alone; the other launches take no such number of latents."""
    weights, inputs = rssm_case(5, 2, 64, 16, 4, latents, classes, fresh_generator, torch.float32, triton_device)
    _, by_stoch, by_logits = outside((weights, inputs), fresh_generator)
    values = StepValues.empty(weights, 5, 2, latents)
    for field in fields(StepValues):
        value = getattr(values, field.name)
        value.zero_()
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape, generator=fresh_generator))
    grads = StepGradients.prepare(weights, values)
    norm, reset = grads.embedded, inputs["reset"][:, 1]
    norm.by_unit.copy_(torch.randn(norm.by_unit.shape, generator=fresh_generator))
    norm.along.copy_((norm.unit * norm.by_unit).unflatten(-1, (-1, module.COLUMNS)).sum(-1))
    grads.logits.fill_(float("nan"))
    module.embedded(weights, UNIMIX, by_stoch[:, 0], by_logits[:, 0], reset, values, grads, 1)
    x = exact(values.embedded[:, 1, 16:]).requires_grad_()
    unit = torch.nn.functional.rms_norm(x, x.shape[1:], None, NORM_EPS)
    by_x = torch.autograd.grad(unit, x, exact(norm.by_unit[:, 1, 1]))[0]
    by_draw = (by_x @ exact(weights.stoch_in)).masked_fill(reset.cpu().unsqueeze(1), 0) + exact(by_stoch[:, 0])
    logits = exact(values.logits[:, 0]).unflatten(1, (latents, classes)).requires_grad_()
    probs = logits.softmax(-1) * (1 - UNIMIX) + UNIMIX / classes
    wanted = torch.autograd.grad(probs, logits, by_draw.view_as(probs))[0].flatten(1) + exact(by_logits[:, 0])
    assert relative_rms(grads.logits[:, 0].cpu(), wanted) < 1e-5
    assert grads.logits[:, 1].isnan().all()


def test_on_triton_is_deterministic(rssm_case, triton_device, fresh_generator):
    case = rssm_case(5, 2, 64, 16, 4, 4, 4, fresh_generator, torch.float32, triton_device)
    given = outside(case, fresh_generator)
    values, _ = reference(case, given)
    kept = StepValues(*(getattr(values, f.name).detach().to(triton_device) for f in fields(StepValues)))
    kept = StepValues(*(x.float() if x.is_floating_point() else x for x in vars(kept).values()))
    first, second = (backward(case, kept, given) for _ in range(2))
    for name in ("logits", "seen", "gates", "active", "state", "shared"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        pytest.param(size, dtype, marks=() if (size, dtype) == ("12M", torch.bfloat16) else pytest.mark.slow)
        for size in WIDTHS
        for dtype in (torch.bfloat16, torch.float32)
    ],
)
def test_compiles_for_every_chip(capability, size, dtype, rssm_case, compile_launches):
    with torch.device("meta"):
        weights, inputs = rssm_case(16, 2, *WIDTHS[size], dtype=dtype, device="meta")
        given = torch.empty(16, 2, *inputs["deter"].shape[1:], dtype=dtype)
        flat = torch.empty(16, 2, *inputs["stoch"].shape[1:], dtype=dtype)
    values = StepValues.empty(weights, 16, 2, inputs["index"].shape[2])

    def call():
        grads = StepGradients.prepare(weights, values)
        for t, later in ((1, None), (0, inputs["reset"][:, 1])):
            reset = inputs["reset"][:, t]
            module.seen(weights, grads, t)
            module.deter(weights, given[:, t], inputs["deter"], reset, later, values, grads, t)
            module.gates(weights, grads, t)
            module.hidden(weights, reset, grads, t)
        module.embedded(weights, UNIMIX, flat[:, 0], flat[:, 0], inputs["reset"][:, 1], values, grads, 1)

    names = ["_deter", "_embedded", "_gates", "_hidden", "_seen", "_units"]
    assert compile_launches(call, [module], capability) == names
