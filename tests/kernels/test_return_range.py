from __future__ import annotations

import numpy as np
import pytest
import torch

from genreward_fast.kernels import return_range as module
from genreward_fast.kernels.return_range import move_range, move_range_reference

COUNTS = [1, 2, 17, 100, 1537]
LEVELS = (0.05, 0.95)


def check(function, values, device, levels=LEVELS, rate=0.3, limit=1.0):
    """Two moves, against numpy in float64."""
    low, high = torch.zeros((), device=device), torch.full((), 2.0, device=device)
    expected = np.array([0.0, 2.0])
    for scale in (1.0, 0.01):
        found = function((scale * values).to(device), low, high, levels, rate, limit)
        with np.errstate(invalid="ignore"):
            target = np.percentile((scale * values).double().numpy(), [100 * x for x in levels])
        expected = (1 - rate) * expected + rate * target
        wanted = torch.tensor([*expected, max(expected[1] - expected[0], limit)])
        wanted = torch.where(wanted[:2].isnan().any(), torch.nan, wanted)
        assert torch.equal(torch.stack([low, high]).nan_to_num(), found[:2].nan_to_num())
        found = found.cpu().double()
        assert torch.allclose(found[:2], wanted[:2], rtol=1e-5, atol=1e-6, equal_nan=True)
        # The width is the difference of two rounded ends.
        rounding = 1e-6 * (1 + wanted[:2].nan_to_num().abs().max().item())
        assert torch.allclose(found[2], wanted[2], rtol=1e-5, atol=rounding, equal_nan=True)


def cases(count, generator):
    """Plain numbers; few different ones; signs, zeros and sizes of all kinds."""
    plain = 3 * torch.randn(count, generator=generator) + 1
    wide = torch.randn(count, generator=generator) * 10 ** (torch.rand(count, generator=generator) * 40 - 35)
    return plain, plain.round(), wide, torch.zeros(count), -plain.abs(), torch.full((count,), -7.5)


@pytest.mark.parametrize("count", COUNTS)
def test_reference(count, fresh_generator):
    for values in cases(count, fresh_generator):
        check(move_range_reference, values, "cpu")


@pytest.mark.parametrize("count", COUNTS)
def test_on_triton_agrees_with_numpy(count, triton_device, poisoned, fresh_generator, monkeypatch):
    for held in (16384, 512):  # all in registers, and read again
        monkeypatch.setattr(module, "HELD", held)
        for values in cases(count, fresh_generator):
            check(move_range, values, triton_device)
        check(move_range, cases(count, fresh_generator)[0], triton_device, levels=(0.0, 1.0))
        check(move_range, cases(count, fresh_generator)[0], triton_device, levels=(0.5, 0.5), limit=0.0)


@pytest.mark.parametrize("held", [16384, 32])
def test_on_triton_nan_shows(held, triton_device, fresh_generator, monkeypatch):
    monkeypatch.setattr(module, "HELD", held)
    for sign in (1, -1):
        values = torch.randn(100, generator=fresh_generator)
        values[70] = sign * float("nan")
        check(move_range, values, triton_device)
        check(move_range_reference, values, "cpu")


def test_on_triton_is_the_same_every_time(triton_device, fresh_generator):
    values = torch.randn(5, 300, generator=fresh_generator).to(triton_device)
    results = []
    for x in (values, values, values.flip(1), values.t()):
        low, high = (torch.zeros((), device=triton_device) for _ in range(2))
        results.append(move_range(x, low, high, LEVELS, 0.01, 1.0))
    assert all(torch.equal(results[0], result) for result in results)


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize(("size", "held"), [(16384, True), (16384, False), (64, True)])
def test_compiles_for_every_chip(capability, size, held, compile_for):
    signature = dict.fromkeys(("values", "low", "high", "result"), "*fp32")
    signature |= dict.fromkeys(("count", "low_rank", "high_rank"), "i32")
    signature |= dict.fromkeys(("low_share", "high_share", "rate", "limit"), "fp32")
    constants = {"SIZE": size, "HELD": held}
    compile_for(module._move, capability, signature, constants, num_warps=max(1, min(16, size // 256)))


@pytest.mark.gpu
@pytest.mark.parametrize("count", [15360, 16384, 16385, 100_000])
def test_large(count, fresh_generator):
    for values in cases(count, fresh_generator):
        check(move_range, values, "cuda")
