from __future__ import annotations

import pytest
import torch

from genreward_fast.kernels import layer_norm as module
from genreward_fast.kernels.layer_norm import layer_norm, layer_norm_reference

EPS = 1e-5
SHAPES = [(1, 2), (7, 5), (2, 3, 33), (65, 16), (3, 1025)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}


def inputs(shape, generator, dtype, device="cpu"):
    """x, weight, bias and shift; x and shift are both needed for a mean near 0, and no row is nearly constant."""
    size = shape[-1]
    spread = torch.linspace(-2, 2, size)[torch.randperm(size, generator=generator)]
    shift = torch.randn(size, generator=generator)
    x = spread + 0.3 * torch.rand(shape, generator=generator) - shift
    weight, bias = (0.5 + torch.rand(size, generator=generator) for _ in range(2))
    return [value.to(device) for value in (x.to(dtype), weight, bias, shift)]


def exact(x, weight, bias, shift):
    x, weight, bias, shift = (value.cpu().double() for value in (x, weight, bias, shift))
    total = x + shift
    distance = total - total.mean(-1, keepdim=True)
    return distance / (distance.square().mean(-1, keepdim=True) + EPS).sqrt() * weight + bias


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_agrees_with_float64(shape, dtype, fresh_generator, relative_rms):
    x, weight, bias, shift = inputs(shape, fresh_generator, dtype)
    found = layer_norm_reference(x, weight, bias, EPS, shift)
    assert found.dtype == dtype
    assert relative_rms(found, exact(x, weight, bias, shift)) < LIMITS[dtype]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_triton_agrees_with_float64(shape, dtype, triton_device, poisoned, fresh_generator, relative_rms):
    x, weight, bias, shift = inputs(shape, fresh_generator, dtype, triton_device)
    found = layer_norm(x, weight, bias, EPS, shift)
    assert found.dtype == dtype
    assert found.shape == x.shape
    assert relative_rms(found, exact(x, weight, bias, shift)) < LIMITS[dtype]


@pytest.mark.parametrize("taken", ["rows", "turned"])
def test_on_triton_takes_what_is_not_contiguous(taken, triton_device, poisoned, fresh_generator, relative_rms):
    whole, weight, bias, shift = inputs((4, 5, 24), fresh_generator, torch.float32, triton_device)
    x = whole[:, 2] if taken == "rows" else whole.transpose(0, 1)
    assert not x.is_contiguous()
    assert relative_rms(layer_norm(x, weight, bias, EPS, shift), exact(x, weight, bias, shift)) < 1e-5


def test_on_triton_nothing_cancels_far_from_zero(triton_device, fresh_generator, relative_rms):
    x, weight, bias, shift = inputs((9, 40), fresh_generator, torch.float32, triton_device)
    far = x + 1000
    assert relative_rms(layer_norm(far, weight, bias, EPS, shift), exact(far, weight, bias, shift)) < 1e-3


def test_on_triton_nan_stays_in_its_row(triton_device, fresh_generator):
    x, weight, bias, shift = inputs((9, 20), fresh_generator, torch.float32, triton_device)
    x[4, 3] = float("nan")
    bad = layer_norm(x, weight, bias, EPS, shift).isnan().cpu()
    assert bad[4].all()
    assert bad.sum() == 20


def test_without_rows():
    row = torch.ones(5)
    assert layer_norm(torch.zeros(0, 5), row, row, EPS, row).shape == (0, 5)


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize(("dtype", "size"), [("bfloat16", 384), ("bfloat16", 768), ("float32", 33)])
def test_compiles_for_every_chip(capability, dtype, size, compile_launches):
    kind = getattr(torch, dtype)
    x = torch.empty(402, size, dtype=kind, device="meta")
    row = torch.empty(size, device="meta")

    def call():
        layer_norm(x, row, row, EPS, row)
        layer_norm(x.view(2, 201, size)[:, 0], row, row, EPS, row)

    assert compile_launches(call, [module], capability) == ["_normalise"]
