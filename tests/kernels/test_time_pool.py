from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from genreward_fast.kernels import time_pool as module
from genreward_fast.kernels.time_pool import time_pool, time_pool_reference

# (B, T, H, W, C)
SHAPES = [(1, 1, 1, 1, 1), (2, 4, 3, 6, 5), (1, 9, 4, 3, 12), (2, 3, 9, 8, 40)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TERMS = [(False, False), (True, False), (False, True), (True, True)]


def inputs(shape, generator, dtype, device="cpu"):
    """Means that need no rounding, since Triton's interpreter cuts where it should round to the nearest."""
    x, residual = (torch.randint(-8, 9, shape, generator=generator) / 4 for _ in range(2))
    shift = torch.randint(-8, 9, shape[-1:], generator=generator) / 4
    return [value.to(device) for value in (x.to(dtype), shift, residual.to(dtype))]


def exact(x, shift, residual, pairs):
    """Frame by frame."""
    total = x.double()
    for term in (shift, residual):
        total = total if term is None else total + term.double()
    frames = list(total.unbind(1))
    if pairs:
        alone, rest = frames[: len(frames) % 2], frames[len(frames) % 2 :]
        frames = alone + [(a + b) / 2 for a, b in zip(rest[::2], rest[1::2])]
    return functional.pad(torch.stack(frames, 1), (0, 0, 0, 1, 0, 1))


def check(function, shape, dtype, terms, pairs, device, generator):
    x, shift, residual = inputs(shape, generator, dtype, device)
    given = (x, shift if terms[0] else None, residual if terms[1] else None)
    found = function(*given, pairs)
    expected = exact(*(None if value is None else value.cpu() for value in given), pairs)
    assert found.dtype == dtype
    assert torch.equal(found.cpu(), expected.to(dtype))


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_agrees_with_float64(shape, dtype, terms, pairs, fresh_generator):
    check(time_pool_reference, shape, dtype, terms, pairs, "cpu", fresh_generator)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_triton_agrees_with_float64(
    shape, dtype, terms, pairs, triton_device, poisoned, fresh_generator, monkeypatch
):
    monkeypatch.setattr(module, "TILE", 512)  # several blocks a frame
    check(time_pool, shape, dtype, terms, pairs, triton_device, fresh_generator)


def test_on_triton_rounds_once(triton_device, fresh_generator, relative_rms):
    x, residual = (torch.randn(2, 5, 3, 4, 7, generator=fresh_generator).to(triton_device) for _ in range(2))
    shift = torch.randn(7, generator=fresh_generator).to(triton_device)
    found = time_pool(x, shift, residual, True)
    assert relative_rms(found, exact(x, shift, residual, True)) < 1e-6
    halves = time_pool(x.bfloat16(), shift, residual.bfloat16(), True)
    assert relative_rms(halves, exact(x.bfloat16(), shift, residual.bfloat16(), True)) < 1e-2


def test_on_triton_nan_stays_in_its_pixel(triton_device, fresh_generator):
    x, shift, residual = inputs((2, 5, 3, 4, 6), fresh_generator, torch.float32, triton_device)
    residual[1, 4, 2, 3, 5] = float("nan")
    found = time_pool(x, shift, residual, True).isnan().cpu()
    assert found[1, 2, 2, 3, 5]
    assert found.sum() == 1


def test_on_triton_takes_maps_that_are_not_contiguous(triton_device, fresh_generator):
    x, _, residual = inputs((2, 4, 3, 6, 5), fresh_generator, torch.float32, triton_device)
    turned = [value.transpose(1, 3).contiguous().transpose(1, 3) for value in (x, residual)]
    assert not turned[0].is_contiguous()
    assert torch.equal(time_pool(turned[0], None, turned[1], True), time_pool_reference(x, None, residual, True))


def test_no_clips():
    assert time_pool(torch.zeros(0, 5, 2, 4, 3), None, None, True).shape == (0, 3, 3, 5, 3)


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize(("dtype", "size"), [("bf16", 8), ("bf16", 512), ("fp32", 128)])
def test_compiles_for_every_chip(capability, dtype, size, compile_launches):
    kind = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    x = torch.empty(2, 17, 60, 60, size, dtype=kind, device="meta")
    vector = torch.empty(size, dtype=kind, device="meta")

    def call():
        time_pool(x, vector, x, True)
        time_pool(x, None, None, False)

    assert compile_launches(call, [module], capability) == ["_pool"]
