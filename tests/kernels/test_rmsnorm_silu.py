from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from genreward_fast.kernels import rmsnorm_silu as module
from genreward_fast.kernels.rmsnorm_silu import (
    rmsnorm_silu,
    rmsnorm_silu_backward,
    rmsnorm_silu_backward_reference,
    rmsnorm_silu_forward,
    rmsnorm_silu_reference,
)

EPS = 1e-4
# (leading shape, groups, size)
SHAPES = [((1,), 1, 5), ((2, 5), 1, 33), ((65,), 2, 32), ((3,), 3, 50), ((30,), 1, 1025), ((500,), 1, 7)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}


def inputs(shape, generator, dtype, device="cpu"):
    """x, scale and the gradient of the result; x is of the size of eps in places, where eps counts."""
    rows, groups, size = shape
    x = torch.randn(*rows, groups * size, generator=generator) * 10 ** (
        torch.rand(*rows, 1, generator=generator) * 4 - 3
    )
    scale = 1 + 0.5 * torch.randn(groups, size, generator=generator)
    grad = torch.randn(x.shape, generator=generator)
    return x.to(dtype).to(device), scale.to(device), grad.to(dtype).to(device)


def exact(x, scale, grad):
    """The result and both gradients, in float64 by autograd."""
    x, scale, grad = (value.cpu().double().requires_grad_() for value in (x, scale, grad))
    pieces = x.unflatten(-1, (-1, scale.shape[-1]))
    normed = pieces / (pieces.square().mean(-1, keepdim=True) + EPS).sqrt() * scale
    y = functional.silu(normed).flatten(-2)
    return [y.detach(), *torch.autograd.grad(y, (x, scale), grad)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_references_are_norm_and_silu(shape, dtype, fresh_generator, relative_rms):
    x, scale, grad = inputs(shape, fresh_generator, dtype)
    by_x, sums = rmsnorm_silu_backward_reference(grad, x, scale, EPS)
    assert torch.allclose(sums[1].flatten(), by_x.double().flatten(0, -2).sum(0).float(), rtol=1e-4, atol=1e-4)
    found = [rmsnorm_silu_reference(x, scale, EPS), by_x, sums[0]]
    for name, value, expected in zip(("y", "x", "scale"), found, exact(x, scale, grad)):
        assert relative_rms(value, expected) < LIMITS[dtype], name


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_triton_agrees_with_float64(
    shape, dtype, triton_device, poisoned, fresh_generator, relative_rms, monkeypatch
):
    monkeypatch.setattr(module, "MAX_PARTIALS", 3)  # so that a program takes several blocks of rows
    x, scale, grad = inputs(shape, fresh_generator, dtype, triton_device)
    leaves = [x.clone().requires_grad_(), scale.clone().requires_grad_()]
    y = rmsnorm_silu(*leaves, EPS)
    assert y.dtype == dtype
    found = [y.detach(), *torch.autograd.grad(y, leaves, grad)]
    for name, value, expected in zip(("y", "x", "scale"), found, exact(x, scale, grad)):
        assert value.shape == expected.shape
        assert relative_rms(value.cpu(), expected) < LIMITS[dtype], name


@pytest.mark.parametrize("shape", [*SHAPES, ((700,), 2, 300), ((90,), 1, 2048)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("partials", [3, 256])
def test_on_triton_sums_are_of_what_was_rounded(
    shape, dtype, partials, triton_device, poisoned, fresh_generator, relative_rms, monkeypatch
):
    monkeypatch.setattr(module, "MAX_PARTIALS", partials)
    x, scale, grad = inputs(shape, fresh_generator, dtype, triton_device)
    by_x, sums = rmsnorm_silu_backward(grad, x, scale, EPS)
    expected = by_x.cpu().double().flatten(0, -2)
    size = expected.abs().sum(0).square().mean().sqrt()  # sums that cancel: relative to that of the magnitudes
    assert (sums[1].cpu().flatten() - expected.sum(0)).square().mean().sqrt() < 1e-5 * size
    assert relative_rms(sums[0].cpu(), exact(x, scale, grad)[2]) < LIMITS[dtype]
    assert torch.equal(sums, rmsnorm_silu_backward(grad, x, scale, EPS)[1])


def test_on_triton_writes_where_it_is_told(triton_device, fresh_generator, relative_rms):
    x, scale, grad = inputs(((17,), 2, 24), fresh_generator, torch.float32, triton_device)
    buffers = torch.full((4, *x.shape), float("nan"), device=triton_device)
    rmsnorm_silu_forward(x, scale, EPS, buffers[1])
    by_x, sums = rmsnorm_silu_backward(grad, x, scale, EPS, buffers[2], sums=False)
    assert sums is None
    assert by_x.data_ptr() == buffers[2].data_ptr()
    assert relative_rms(buffers[1].cpu(), rmsnorm_silu_reference(x, scale, EPS).cpu()) < 1e-5
    assert relative_rms(by_x.cpu(), rmsnorm_silu_backward_reference(grad, x, scale, EPS)[0].cpu()) < 1e-5
    assert buffers[[0, 3]].isnan().all()


def test_on_triton_takes_what_is_not_contiguous(triton_device, fresh_generator, relative_rms):
    x, scale, _ = inputs(((4, 6), 1, 20), fresh_generator, torch.float32, triton_device)
    turned = x.transpose(0, 1)
    assert not turned.is_contiguous()
    expected = rmsnorm_silu_reference(x, scale, EPS).transpose(0, 1)
    assert relative_rms(rmsnorm_silu(turned, scale, EPS).cpu(), expected.cpu()) < 1e-5


def test_on_triton_nan_stays_in_its_row(triton_device, fresh_generator):
    x, scale, _ = inputs(((9,), 1, 20), fresh_generator, torch.float32, triton_device)
    x[4, 3] = float("nan")
    bad = rmsnorm_silu(x, scale, EPS).isnan().cpu()
    assert bad[4].all()
    assert bad.sum() == 20


def test_without_rows():
    scale = torch.ones(5)
    assert rmsnorm_silu(torch.zeros(0, 5), scale, EPS).shape == (0, 5)


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize(("dtype", "size"), [("bf16", 32), ("bf16", 16384), ("fp32", 2048)])
def test_compiles_for_every_chip(capability, dtype, size, compile_for):
    pointers = {"x": f"*{dtype}", "scale": "*fp32"}
    numbers = {"rows": "i32", "size": "i32", "eps": "fp32"}
    rows = max(1, min(64, 2048 // size))
    signature = pointers | {"y": f"*{dtype}"} | numbers
    compile_for(module._forward, capability, signature, {"ROWS": rows, "SIZE": size}, num_warps=4)
    signature = (
        pointers | {"grad": f"*{dtype}", "by_x": f"*{dtype}", "partial": "*fp32", "per_program": "i32"} | numbers
    )
    constants = {"ROWS": rows, "SIZE": size, "SUMS": True}
    if size == 32:  # an argument of 1, as with few rows, becomes a constant
        constants["per_program"] = 1
    compile_for(module._backward, capability, signature, constants, num_warps=module._warps(rows, size))
    if size <= 2048:
        constants["ROWS"] = 2 * rows
        compile_for(module._backward, capability, signature, constants, num_warps=module._warps(2 * rows, size))
