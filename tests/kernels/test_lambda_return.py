from __future__ import annotations

import pytest
import torch

from genreward_fast.kernels import lambda_return as module
from genreward_fast.kernels.lambda_return import (
    imagined_return,
    imagined_return_reference,
    lambda_return,
    lambda_return_reference,
)

SHAPES = [(1, 2), (3, 5), (16, 64), (2, 65), (70, 3), (5, 16)]
DISCOUNT, LAM = 0.997, 0.95


def make(rows, steps, generator, device="cpu"):
    """Reward, terminal, last, bootstrap, logit of continuation; (rows, steps) each."""
    reward, bootstrap, logit = (torch.randn(rows, steps, generator=generator) for _ in range(3))
    terminal, last = (torch.rand(rows, steps, generator=generator) < 0.15 for _ in range(2))
    return [x.to(device) for x in (reward, terminal, last, 10 + bootstrap, logit + 3)]


def exact(reward, terminal, last, bootstrap, discount=DISCOUNT, lam=LAM):
    """In float64, as the formula has it."""
    reward, terminal, last, bootstrap = (x.cpu().double() for x in (reward, terminal, last, bootstrap))
    value, found = bootstrap[:, -1], []
    for t in reversed(range(reward.shape[1] - 1)):
        go_on = lam * (1 - last[:, t + 1])
        value = reward[:, t + 1] + discount * (1 - terminal[:, t + 1]) * (
            (1 - go_on) * bootstrap[:, t + 1] + go_on * value
        )
        found.append(value)
    return torch.stack(found[::-1], 1)


def check_replayed(function, shape, device, generator, relative_rms):
    reward, terminal, last, bootstrap, _ = make(*shape, generator, device)
    found = function(reward, terminal, last, bootstrap, DISCOUNT, LAM)
    assert found.dtype == torch.float32
    assert found.shape == (shape[0], shape[1] - 1)
    expected = exact(reward, terminal, last, bootstrap)
    assert relative_rms(found.cpu(), expected) < 1e-5
    floats = function(reward, 0.3 * terminal, 0.5 * last, bootstrap, 1.0, LAM)
    assert relative_rms(floats.cpu(), exact(reward, 0.3 * terminal, 0.5 * last, bootstrap, 1.0)) < 1e-5


def check_imagined(function, shape, dtype, discount, device, generator, relative_rms):
    reward, _, _, bootstrap, logit = make(*shape, generator, device)
    logit = logit.to(dtype)
    found = function(*(x.t().contiguous() for x in (reward, logit, bootstrap)), discount, LAM)
    con = logit.cpu().double().sigmoid()
    weight = torch.cumprod(discount * con, 1) / discount
    expected = [con, exact(reward, 1 - con, torch.zeros_like(con), bootstrap, discount), weight]
    for name, value, wanted in zip(("con", "returns", "weight"), found, expected):
        assert value.dtype == torch.float32
        assert value.shape == wanted.t().shape
        assert relative_rms(value.t().cpu(), wanted) < 1e-5, name


@pytest.mark.parametrize("shape", SHAPES)
def test_references(shape, fresh_generator, relative_rms):
    check_replayed(lambda_return_reference, shape, "cpu", fresh_generator, relative_rms)
    check_imagined(imagined_return_reference, shape, torch.float32, 0.9, "cpu", fresh_generator, relative_rms)


@pytest.mark.parametrize("shape", SHAPES)
def test_on_triton_replayed(shape, triton_device, poisoned, fresh_generator, relative_rms):
    check_replayed(lambda_return, shape, triton_device, fresh_generator, relative_rms)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "discount"), [(torch.float32, 1.0), (torch.bfloat16, 0.9)])
def test_on_triton_imagined(shape, dtype, discount, triton_device, poisoned, fresh_generator, relative_rms):
    check_imagined(imagined_return, shape, dtype, discount, triton_device, fresh_generator, relative_rms)


def test_on_triton_takes_what_is_not_contiguous(triton_device, fresh_generator, relative_rms):
    values = make(6, 9, fresh_generator, triton_device)[:4]
    turned = [x.t().contiguous().t() for x in values]
    assert torch.equal(lambda_return(*turned, DISCOUNT, LAM), lambda_return(*values, DISCOUNT, LAM))


def test_on_triton_nan_reaches_what_came_before(triton_device, fresh_generator):
    reward, terminal, _, bootstrap, logit = make(3, 8, fresh_generator, triton_device)
    reward[1, 4] = float("nan")
    free = torch.zeros_like(terminal)
    bad = lambda_return(reward, free, free, bootstrap, DISCOUNT, LAM).isnan()
    assert bad.cpu().sum() == bad[1, :4].sum() == 4
    bad = imagined_return(reward.t(), logit.t(), bootstrap.t(), 1.0, LAM)[1].isnan()
    assert bad.cpu().sum() == bad[:4, 1].sum() == 4


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize("size", [16, 64, 1024])
def test_compiles_for_every_chip(capability, size, compile_for):
    constants = {"ROWS": max(1, min(32, 1024 // size)), "SIZE": size}
    numbers = {"rows": "i32", "steps": "i32", "discount": "fp32", "lam": "fp32"}
    flags = {"terminal": "*u8", "last": "*u8"}
    floats = dict.fromkeys(("reward", "bootstrap", "out"), "*fp32")
    compile_for(module._replayed, capability, floats | flags | numbers, constants, num_warps=4)
    floats = dict.fromkeys(("reward", "bootstrap", "con", "returns", "weight"), "*fp32") | {"logit": "*bf16"}
    compile_for(module._imagined, capability, floats | numbers, constants, num_warps=4)


@pytest.mark.gpu
def test_large(fresh_generator, relative_rms):
    check_replayed(lambda_return, (1024, 64), "cuda", fresh_generator, relative_rms)
    check_imagined(imagined_return, (4096, 16), torch.bfloat16, 1.0, "cuda", fresh_generator, relative_rms)
