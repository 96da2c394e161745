from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from genreward_fast.kernels import prior_sample as module
from genreward_fast.kernels.latent_sample import latent_sample
from genreward_fast.kernels.prior_sample import PriorWeights, prior_sample
from genreward_fast.kernels.triton_support import INTERPRETED

UNIMIX, EPS = 0.01, 1e-4
# Rows, units, latents, classes, further layers.
SHAPES = [
    (1, 16, 1, 7, 0),
    (9, 16, 7, 1, 0),
    (5, 48, 3, 6, 1),
    (17, 32, 8, 4, 2),
    (33, 64, 20, 17, 1),
    (3, 256, 5, 96, 1),
]
# One launch does not fit these.
OTHERS = [(5, 24, 4, 3, 2), (3, 528, 2, 4, 1)]
WIDTHS = {"tiny": (64, 4), "12M": (256, 16), "25M": (384, 24), "50M": (512, 32)}
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
# Triton's interpreter cannot multiply matrices of bfloat16.
DTYPES = [torch.float32] if INTERPRETED else [torch.float32, torch.bfloat16]


def inputs(rows, units, latents, classes, layers, generator, dtype, device="cpu"):
    """The weights, and x."""

    def draw(*shape, scale=1.0, dtype=dtype):
        return (scale * torch.randn(*shape, generator=generator)).to(dtype).to(device)

    flat = latents * classes
    scales = draw(1 + layers, units, scale=0.2, dtype=torch.float32) + 1
    further = draw(layers, units, units, scale=2 * units**-0.5), draw(layers, units, scale=0.3)
    x = draw(rows, 3 * units)[:, :units]  # rows are strided
    output = draw(flat, units, scale=4 * units**-0.5), draw(flat, scale=0.5)
    return PriorWeights(scales, further, output, UNIMIX, EPS), x


def exact_logits(weights, x):
    """In float64, (N, S * K)."""
    x, scales = x.cpu().double(), weights.scales.cpu().double()
    layers, output = ([value.cpu().double() for value in values] for values in (weights.layers, weights.output))
    for scale, weight, bias in zip(scales, [*layers[0], output[0]], [*layers[1], output[1]]):
        x = F.linear(F.silu(F.rms_norm(x, scale.shape, scale, EPS)), weight, bias)
    return x


def intervals(logits):
    """The ends of the classes' intervals in float64."""
    probs = logits.cpu().double().softmax(-1) * (1 - UNIMIX) + UNIMIX / logits.shape[-1]
    upper = probs.cumsum(-1)
    return upper - probs, upper


def run(given, shape, uniform, index, function=prior_sample):
    """Logits, one-hots and classes; what is not to be written is NaN, and stays so."""
    rows, _, latents, classes, _ = shape
    x, flat = given[1], latents * classes
    logits = torch.full((rows + 1, latents, classes), float("nan"), dtype=x.dtype, device=x.device)
    buffer = torch.full((rows, flat + 6), float("nan"), dtype=x.dtype, device=x.device)
    out = buffer[:, 4:-2].unflatten(1, (latents, classes))
    drawn = function(*given, uniform, index, logits[:-1], out)
    assert logits[-1].isnan().all()
    assert buffer[:, :4].isnan().all()
    assert buffer[:, -2:].isnan().all()
    assert drawn.dtype == torch.int64
    assert torch.equal(out.cpu(), F.one_hot(drawn.cpu(), classes).to(x.dtype))
    return logits[:-1], drawn


def check(shape, dtype, device, generator, relative_rms):
    rows, _, latents, classes, _ = shape
    given = inputs(*shape, generator, dtype, device)
    taken = torch.randint(0, classes, (rows, latents), generator=generator)
    logits, index = run(given, shape, None, taken.to(device))
    assert torch.equal(index.cpu(), taken)
    assert relative_rms(logits.flatten(1), exact_logits(*given), of=1.0) < LIMITS[dtype]
    # A number in the middle of a class's interval draws this class.
    lower, upper = intervals(logits)
    middle = ((lower + upper) / 2).gather(-1, taken.unsqueeze(-1)).squeeze(-1).float().to(device)
    again, index = run(given, shape, middle, None)
    assert torch.equal(again, logits)
    assert torch.equal(index.cpu(), taken)
    assert torch.equal(index, latent_sample(logits, middle, UNIMIX)[0])
    # Any number lies in the interval of the class drawn, whose ends are known to float32's precision.
    uniform = torch.rand(rows, latents, generator=generator)
    index = run(given, shape, uniform.to(device), None)[1].cpu().unsqueeze(-1)
    lower, upper = (end.gather(-1, index).squeeze(-1) for end in (lower, upper))
    assert (lower <= uniform + 1e-5).all()
    assert (uniform <= upper + 1e-5).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reference_draws_and_agrees_with_float64(shape, dtype, fresh_generator, relative_rms):
    check(shape, dtype, "cpu", fresh_generator, relative_rms)


@pytest.mark.parametrize("shape", SHAPES + OTHERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_triton_draws_and_agrees_with_float64(
    shape, dtype, triton_device, poisoned, fresh_generator, relative_rms, monkeypatch
):
    launches, fallbacks = module.prior_sample_launches, []

    def counted(*given):
        fallbacks.append(given)
        return launches(*given)

    monkeypatch.setattr(module, "prior_sample_launches", counted)
    check(shape, dtype, triton_device, fresh_generator, relative_rms)
    assert len(fallbacks) == 3 * (shape in OTHERS)


def test_on_triton_is_what_a_launch_for_each_layer_gives(triton_device, fresh_generator, relative_rms):
    shape = (17, 32, 8, 6, 2)
    given = inputs(*shape, fresh_generator, torch.float32, triton_device)
    uniform = torch.rand(17, 8, generator=fresh_generator).to(triton_device)
    found, drawn = run(given, shape, uniform, None)
    expected, _ = run(given, shape, uniform, None, module.prior_sample_launches)
    assert relative_rms(found.cpu(), expected.cpu()) < 1e-5
    again, redrawn = run(given, shape, uniform, None)
    assert torch.equal(found, again)
    assert torch.equal(drawn, redrawn)


def test_on_triton_nan_stays_in_its_row(triton_device, fresh_generator):
    shape = (18, 32, 4, 4, 1)
    given = inputs(*shape, fresh_generator, torch.float32, triton_device)
    given[1][16, 3] = float("nan")
    uniform = torch.rand(18, 4, generator=fresh_generator).to(triton_device)
    bad = run(given, shape, uniform, None)[0].isnan().cpu()
    assert bad[16].all()
    assert bad.sum() == 16


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        ("12M", torch.bfloat16),
        pytest.param("tiny", torch.bfloat16, marks=pytest.mark.slow),
        pytest.param("12M", torch.float32, marks=pytest.mark.slow),
        pytest.param("25M", torch.bfloat16, marks=pytest.mark.slow),
        pytest.param("50M", torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_compiles_for_every_chip(capability, size, dtype, compile_launches):
    (units, classes), latents = WIDTHS[size], 32
    with torch.device("meta"):
        given = inputs(16, units, latents, classes, 1, None, dtype, "meta")
        logits = torch.empty(16, latents, classes, dtype=dtype)
        uniform = torch.empty(16, latents)
        index = torch.empty(16, latents, dtype=torch.int64)

    def call():
        prior_sample(*given, uniform, None, logits, logits)
        prior_sample(*given, None, index, logits, logits)

    assert compile_launches(call, [module], capability) == ["_forward"]
