from __future__ import annotations

import pytest
import torch

from genreward_fast.kernels import activated_linear as module
from genreward_fast.kernels.activated_linear import activated_linear, activated_linear_reference

# (N, K, F)
SHAPES = [(1, 8, 1), (7, 24, 5), (130, 72, 67), (33, 136, 129)]
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}


def inputs(shape, gated, generator, dtype, device="cpu"):
    """Products of deviation 1 around 1 for the activation, around 2 for what it gates: not all near 0 together."""
    rows, width, size = shape
    outputs = 2 * size if gated else size
    x = torch.randn(rows, width, generator=generator)
    weight = torch.randn(outputs, width, generator=generator) * width**-0.5
    bias = 1 + 0.3 * torch.rand(outputs, generator=generator)
    bias[size:] += 1
    return [value.to(device) for value in (x.to(dtype), weight.to(dtype), bias)]


def exact(x, weight, bias, gated):
    y = x.cpu().double() @ weight.cpu().double().T + bias.cpu().double()
    if not gated:
        return y * (1 + torch.erf(y * 0.5**0.5)) / 2
    gate, up = y.chunk(2, -1)
    return gate / (1 + (-gate).exp()) * up


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize("dtype", LIMITS)
def test_reference_agrees_with_float64(shape, dtype, gated, fresh_generator, relative_rms):
    given = inputs(shape, gated, fresh_generator, dtype)
    found = activated_linear_reference(*given, gated=gated)
    assert found.dtype == dtype
    assert relative_rms(found, exact(*given, gated)) < LIMITS[dtype]


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # the interpreter multiplies no bfloat16
def test_on_triton_agrees_with_float64(shape, dtype, gated, triton_device, poisoned, fresh_generator, relative_rms):
    given = inputs(shape, gated, fresh_generator, dtype, triton_device)
    found = activated_linear(*given, gated=gated)
    assert found.dtype == dtype
    assert found.shape == (shape[0], shape[2])
    assert relative_rms(found, exact(*given, gated)) < LIMITS[dtype]


@pytest.mark.parametrize("gated", [True, False])
def test_on_triton_rows_do_not_depend_on_the_batch(gated, triton_device, fresh_generator):
    x, weight, bias = inputs((150, 72, 67), gated, fresh_generator, torch.float16, triton_device)
    together = activated_linear(x, weight, bias, gated=gated)
    assert torch.equal(activated_linear(x[:3], weight, bias, gated=gated), together[:3])


def test_on_triton_nan_stays_in_its_row(triton_device, fresh_generator):
    x, weight, bias = inputs((9, 24, 20), True, fresh_generator, torch.float16, triton_device)
    x[4, 3] = float("nan")
    bad = activated_linear(x, weight, bias, gated=True).isnan()
    assert bad[4].all()
    assert bad.sum() == 20


def test_on_triton_takes_what_it_cannot_copy_in_tiles(triton_device, fresh_generator, relative_rms):
    """Rows that are no multiple of 16 bytes, and rows that are not contiguous."""
    odd = inputs((9, 23, 20), True, fresh_generator, torch.float16, triton_device)
    assert relative_rms(activated_linear(*odd, gated=True), exact(*odd, True)) < LIMITS[torch.float16]
    x, weight, bias = inputs((24, 24, 20), True, fresh_generator, torch.float16, triton_device)
    assert relative_rms(activated_linear(x.T, weight, bias, gated=True), exact(x.T, weight, bias, True)) < 1e-3


def test_without_rows():
    assert activated_linear(torch.zeros(0, 6), torch.zeros(8, 6), torch.zeros(8), gated=True).shape == (0, 4)


@pytest.mark.parametrize(
    ("weight", "bias", "dtype"),
    [((8, 5), 8, torch.float32), ((8, 6), 7, torch.float32), ((7, 6), 7, torch.float32), ((8, 6), 8, torch.float16)],
)
def test_refuses_what_does_not_fit(weight, bias, dtype):
    with pytest.raises(ValueError, match=r"fit|must be the same"):
        activated_linear(torch.zeros(2, 6), torch.zeros(weight, dtype=dtype), torch.zeros(bias), gated=True)


@pytest.mark.gpu
@pytest.mark.parametrize(("gated", "width", "size"), [(True, 384, 1536), (False, 768, 3072)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_gpu_at_full_widths(dtype, gated, width, size, poisoned, fresh_generator, relative_rms):
    given = inputs((3217, width, size), gated, fresh_generator, dtype, "cuda")
    found = activated_linear(*given, gated=gated)
    assert relative_rms(found, exact(*given, gated)) < LIMITS[dtype]


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize(("gated", "width", "size"), [(True, 384, 1536), (False, 768, 3072)])
def test_compiles_for_every_chip(capability, gated, width, size, compile_launches):
    def rows(*shape):
        return torch.empty(*shape, dtype=torch.bfloat16, device="meta")

    weight = rows(2 * size if gated else size, width)
    launched = compile_launches(
        lambda: activated_linear(rows(201, width), weight, rows(len(weight)), gated=gated), [module], capability
    )
    assert launched == ["_forward"]
