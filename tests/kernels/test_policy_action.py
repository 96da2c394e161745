from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from genreward_fast.kernels import policy_action as module
from genreward_fast.kernels.policy_action import policy_action

BOUNDS, EPS = (0.1, 1.0), 1e-4
# Rows, units, hidden, actions.
SHAPES = [(1, 16, 16, 1), (5, 24, 32, 4), (17, 48, 16, 3), (33, 64, 96, 2), (4, 256, 256, 6)]
WIDTHS = {"12M": (256, 256), "25M": (384, 384), "400M": (1536, 1536)}
DTYPES = [torch.float32, torch.bfloat16]
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def inputs(rows, units, hidden, actions, generator, dtype, device="cpu"):
    def draw(*shape, scale=1.0, dtype=dtype):
        return (scale * torch.randn(*shape, generator=generator)).to(dtype).to(device)

    def scales(size):
        return draw(size, scale=0.2, dtype=torch.float32) + 1

    head = draw(2 * actions, units, scale=2 * units**-0.5), draw(2 * actions)
    embed = draw(hidden, actions), draw(hidden), scales(hidden)
    return draw(rows, units), scales(units), head, draw(rows, actions, scale=1.5, dtype=torch.float32), embed


def exact(x, scale, head, noise, action, embed):
    """Action and embedded action in float64; the action that is given, if there is no noise."""
    x, scale, action = (value.cpu().double() for value in (x, scale, action))
    weight, bias = (value.cpu().double() for value in head)
    embed_weight, embed_bias, embed_scale = (value.cpu().double() for value in embed)
    if noise is not None:
        raw = F.linear(F.silu(F.rms_norm(x, scale.shape, scale, EPS)), weight, bias)
        mean, deviation = raw.chunk(2, 1)
        deviation = BOUNDS[0] + (BOUNDS[1] - BOUNDS[0]) * torch.sigmoid(deviation + 2)
        action = torch.tanh(mean) + deviation * noise.cpu().double()
    embedded = F.linear(action / action.abs().clamp(min=1), embed_weight, embed_bias)
    return action, F.silu(F.rms_norm(embedded, embed_scale.shape, embed_scale, EPS))


def check(shape, dtype, forced, device, generator, relative_rms):
    x, scale, head, drawn, embed = inputs(*shape, generator, dtype, device)
    noise = None if forced else drawn
    action = drawn.clone() if forced else torch.full_like(drawn, float("nan"))
    # Rows that are strided, between others that are not to be written.
    buffer = torch.full((shape[0], 3 * shape[2]), float("nan"), dtype=dtype, device=device)
    out = buffer[:, shape[2] : 2 * shape[2]]
    policy_action(x, scale, head, noise, action, BOUNDS, embed, EPS, out)
    expected_action, expected = exact(x, scale, head, noise, drawn, embed)
    # An action is the sum of two numbers of about 1, which may cancel.
    assert relative_rms(action, expected_action, of=1.0) < LIMITS[dtype]
    assert relative_rms(out.cpu(), expected) < LIMITS[dtype]
    assert not forced or torch.equal(action, drawn)
    assert buffer[:, : shape[2]].isnan().all()
    assert buffer[:, 2 * shape[2] :].isnan().all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("forced", [False, True])
def test_reference_agrees_with_float64(shape, dtype, forced, fresh_generator, relative_rms):
    check(shape, dtype, forced, "cpu", fresh_generator, relative_rms)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("forced", [False, True])
def test_on_triton_agrees_with_float64(shape, dtype, forced, triton_device, fresh_generator, relative_rms):
    check(shape, dtype, forced, triton_device, fresh_generator, relative_rms)


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", list(WIDTHS))
def test_compiles_for_every_chip(capability, dtype, size, compile_launches):
    units, hidden = WIDTHS[size]
    with torch.device("meta"):
        x, scale, head, noise, embed = inputs(16, units, hidden, 4, None, dtype, "meta")
        action, out = torch.empty_like(noise), torch.empty(16, hidden, dtype=dtype)

    def call():
        policy_action(x, scale, head, noise, action, BOUNDS, embed, EPS, out)
        policy_action(x, scale, head, None, action, BOUNDS, embed, EPS, out)

    assert compile_launches(call, [module], capability) == ["_forward"]
