from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from genreward_fast.kernels import actor_tail as module
from genreward_fast.kernels.actor_tail import TailWeights, actor_tail
from genreward_fast.kernels.triton_support import INTERPRETED

BOUNDS, EPS = (0.1, 1.0), 1e-4
# Rows, units, actions, further layers.
SHAPES = [(1, 16, 7, 0), (9, 48, 1, 1), (17, 32, 3, 2), (33, 64, 17, 3), (3, 256, 6, 2)]
# One launch does not fit these.
OTHERS = [(5, 24, 4, 2), (3, 528, 2, 1), (2, 256, 33, 0)]
UNITS = {"tiny": 64, "12M": 256, "25M": 384, "50M": 512}
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
# Triton's interpreter cannot multiply matrices of bfloat16.
DTYPES = [torch.float32] if INTERPRETED else [torch.float32, torch.bfloat16]


def inputs(rows, units, actions, layers, generator, dtype, device="cpu"):
    def draw(*shape, scale=1.0, dtype=dtype):
        return (scale * torch.randn(*shape, generator=generator)).to(dtype).to(device)

    scales = draw(3 + layers, units, scale=0.2, dtype=torch.float32) + 1
    further = draw(layers, units, units, scale=2 * units**-0.5), draw(layers, units, scale=0.3)
    head = draw(2 * actions, units, scale=2 * units**-0.5), draw(2 * actions)
    embed = draw(units, actions), draw(units), draw(units, scale=0.2, dtype=torch.float32) + 1
    # Rows are strided.
    deter, stoch = draw(rows, 4 * units)[:, units : 3 * units], draw(rows, 2 * units + 8)[:, 8:]
    weights = TailWeights(scales, further, head, embed, BOUNDS, EPS)
    return weights, deter, stoch, draw(rows, actions, scale=1.5, dtype=torch.float32)


def exact(weights, deter, stoch, noise, action):
    """Action and all three embeddings in float64; the action that is given, if there is no noise."""
    deter, stoch, scales, action = (value.cpu().double() for value in (deter, stoch, weights.scales, action))
    groups = weights.layers, weights.head, weights.embed
    layers, head, embed = ([value.cpu().double() for value in values] for values in groups)

    def normed(x, scale):
        return F.silu(F.rms_norm(x, scale.shape, scale, EPS))

    (first, x), (second, more) = deter.chunk(2, 1), stoch.chunk(2, 1)
    *others, x = (normed(x, scale) for x, scale in zip((first, second, x + more), scales))
    if noise is not None:
        for weight, bias, scale in zip(*layers, scales[3:]):
            x = normed(F.linear(x, weight, bias), scale)
        mean, deviation = F.linear(x, *head).chunk(2, 1)
        deviation = BOUNDS[0] + (BOUNDS[1] - BOUNDS[0]) * torch.sigmoid(deviation + 2)
        action = torch.tanh(mean) + deviation * noise.cpu().double()
    embedded = normed(F.linear(action / action.abs().clamp(min=1), *embed[:2]), embed[2])
    return action, torch.cat([*others, embedded], 1)


def check(shape, dtype, forced, device, generator, relative_rms):
    weights, deter, stoch, drawn = inputs(*shape, generator, dtype, device)
    noise = None if forced else drawn
    action = drawn.clone() if forced else torch.full_like(drawn, float("nan"))
    # One row more, which is not to be written.
    out = torch.full((shape[0] + 1, 3 * shape[1]), float("nan"), dtype=dtype, device=device)
    actor_tail(weights, deter, stoch, noise, action, out[:-1])
    expected_action, expected = exact(weights, deter, stoch, noise, drawn)
    # An action is the sum of two numbers of about 1, which may cancel.
    assert relative_rms(action, expected_action, of=1.0) < LIMITS[dtype]
    for name, a, b in zip(("first", "second", "action's"), out[:-1].cpu().chunk(3, 1), expected.chunk(3, 1)):
        assert relative_rms(a, b) < LIMITS[dtype], name
    assert not forced or torch.equal(action, drawn)
    assert out[-1].isnan().all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("forced", [False, True])
def test_reference_agrees_with_float64(shape, dtype, forced, fresh_generator, relative_rms):
    check(shape, dtype, forced, "cpu", fresh_generator, relative_rms)


@pytest.mark.parametrize("shape", SHAPES + OTHERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("forced", [False, True])
def test_on_triton_agrees_with_float64(
    shape, dtype, forced, triton_device, poisoned, fresh_generator, relative_rms, monkeypatch
):
    launches, fallbacks = module.actor_tail_launches, []
    monkeypatch.setattr(module, "actor_tail_launches", lambda *given: fallbacks.append(launches(*given)))
    check(shape, dtype, forced, triton_device, fresh_generator, relative_rms)
    assert len(fallbacks) == (shape in OTHERS)


def test_on_triton_is_what_a_launch_for_each_layer_gives(triton_device, fresh_generator, relative_rms):
    weights, deter, stoch, noise = inputs(17, 32, 3, 2, fresh_generator, torch.float32, triton_device)
    results = []
    for function in (actor_tail, module.actor_tail_launches, actor_tail):
        action, out = torch.full_like(noise, float("nan")), torch.full((17, 96), float("nan"), device=triton_device)
        function(weights, deter, stoch, noise, action, out)
        results.append(torch.cat([action, out], 1).cpu())
    assert relative_rms(results[0], results[1]) < 1e-5
    assert torch.equal(results[0], results[2])


def test_on_triton_nan_stays_in_its_row_and_part(triton_device, fresh_generator):
    weights, deter, stoch, noise = inputs(18, 32, 3, 2, fresh_generator, torch.float32, triton_device)
    deter[4, 3] = stoch[5, 31] = deter[17, 32] = stoch[3, 63] = float("nan")
    action, out = torch.zeros_like(noise), torch.zeros(18, 96, device=triton_device)
    actor_tail(weights, deter, stoch, noise, action, out)
    bad = out.isnan().cpu()
    assert bad[4, :32].all()
    assert bad[5, 32:64].all()
    assert bad[[3, 17], 64:].all()
    assert bad.sum() == 4 * 32
    assert action.isnan().all(1).nonzero().flatten().tolist() == [3, 17]
    assert action.isnan().sum() == 6


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize(
    ("size", "actions", "dtype"),
    [
        ("12M", 4, torch.bfloat16),
        pytest.param("tiny", 128, torch.bfloat16, marks=pytest.mark.slow),
        pytest.param("12M", 32, torch.bfloat16, marks=pytest.mark.slow),
        pytest.param("12M", 16, torch.float32, marks=pytest.mark.slow),
        pytest.param("25M", 16, torch.bfloat16, marks=pytest.mark.slow),
        pytest.param("50M", 16, torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_compiles_for_every_chip(capability, size, actions, dtype, compile_launches):
    with torch.device("meta"):
        weights, deter, stoch, noise = inputs(16, UNITS[size], actions, 2, None, dtype, "meta")
        action, out = torch.empty_like(noise), torch.empty(16, 3 * UNITS[size], dtype=dtype)

    def call():
        actor_tail(weights, deter, stoch, noise, action, out)
        actor_tail(weights, deter, stoch, None, action, out)

    assert compile_launches(call, [module], capability) == ["_forward"]
