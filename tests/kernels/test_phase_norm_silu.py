from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from genreward_fast.kernels import phase_norm_silu as module
from genreward_fast.kernels.phase_norm_silu import phase_norm_silu, phase_norm_silu_reference, shuffle, unshuffle

EPS = 1e-4
MODES = ["keep", "shuffle", "pool", "pool_blocks"]
# (N, H, W, C)
SHAPES = [(1, 2, 2, 5), (3, 4, 6, 8), (2, 2, 10, 33), (1, 16, 8, 48)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}


def inputs(shape, generator, dtype, device="cpu"):
    """x with many ties among phases, bias and scale; x² is of the size of eps in places, where eps counts. The sums of
    x and bias need no rounding, since Triton's interpreter cuts where it should round to the nearest."""
    *space, size = shape
    x = torch.randint(-3, 4, (*space, 4 * size), generator=generator) / 4
    x = x * 2.0 ** -torch.randint(0, 6, (*space, 1), generator=generator)
    bias = torch.randint(-4, 5, (size,), generator=generator) / 128
    scale = 1 + torch.randn(size, generator=generator) / 2
    return x.to(dtype).to(device), bias.to(device), scale.to(device)


def exact(x, bias, scale, mode):
    """The result in float64, of leaves in float64, one of them the rounded sum of x and bias, and those leaves."""
    value = (x.unflatten(-1, (4, -1)) + bias.to(x.dtype)).cpu().double().requires_grad_()
    scale = scale.cpu().double().requires_grad_()
    pixels = value.amax(-2) if mode.startswith("pool") else shuffle(value.flatten(-2))
    normed = pixels / (pixels.square().mean(-1, keepdim=True) + EPS).sqrt() * scale
    y = functional.silu(normed)
    return unshuffle(y) if mode in ("keep", "pool_blocks") else y, (value, scale)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", MODES)
def test_shuffling_has_an_inverse(shape, mode):
    x = torch.randn(*shape[:-1], 4 * shape[-1])
    assert torch.equal(unshuffle(shuffle(x)), x)
    expected = functional.pixel_shuffle(x.unflatten(-1, (4, -1)).transpose(-1, -2).flatten(-2).permute(0, 3, 1, 2), 2)
    assert torch.equal(shuffle(x), expected.permute(0, 2, 3, 1))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_reference_agrees_with_float64(shape, dtype, mode, fresh_generator, relative_rms):
    leaves = [value.requires_grad_() for value in inputs(shape, fresh_generator, dtype)]
    found = phase_norm_silu_reference(*leaves, EPS, mode)
    check(found, leaves, mode, fresh_generator, relative_rms)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_on_triton_agrees_with_float64(
    shape, dtype, mode, triton_device, poisoned, fresh_generator, relative_rms, monkeypatch
):
    monkeypatch.setattr(module, "MAX_PARTIALS", 3)  # so that a program takes several blocks of rows
    monkeypatch.setattr(module, "TILE", 128)
    leaves = [value.requires_grad_() for value in inputs(shape, fresh_generator, dtype, triton_device)]
    found = phase_norm_silu(*leaves, EPS, mode)
    check(found, leaves, mode, fresh_generator, relative_rms)


def check(found, leaves, mode, generator, relative_rms):
    """Value and gradients, beside those in float64."""
    dtype = leaves[0].dtype
    expected, (value, scale) = exact(*(leaf.detach() for leaf in leaves), mode)
    assert found.dtype == dtype
    assert found.shape == expected.shape
    assert relative_rms(found.detach().cpu(), expected.detach()) < LIMITS[dtype]
    grad = torch.randn(expected.shape, generator=generator).to(dtype)
    by_value, by_scale = torch.autograd.grad(expected, (value, scale), grad.double())
    by_x, by_bias, found_by_scale = torch.autograd.grad(found, leaves, grad.to(found.device))
    assert relative_rms(by_x.cpu(), by_value.flatten(-2)) < LIMITS[dtype]
    assert relative_rms(found_by_scale.cpu(), by_scale) < LIMITS[dtype]
    # A sum that may cancel: its error counts relative to the sum of the magnitudes.
    error = by_bias.cpu().double() - by_value.sum((0, 1, 2, 3))
    assert (error.abs() <= LIMITS[dtype] * by_value.abs().sum((0, 1, 2, 3))).all()


@pytest.mark.parametrize("mode", ["shuffle", "pool"])
def test_on_triton_fills_the_channels_beyond(mode, triton_device, poisoned, fresh_generator, relative_rms):
    leaves = [value.requires_grad_() for value in inputs((2, 4, 4, 12), fresh_generator, torch.float32, triton_device)]
    found, plain = (phase_norm_silu(*leaves, EPS, mode, columns) for columns in (16, None))
    assert torch.equal(found[..., :12], plain)
    assert not found[..., 12:].any()
    reference = phase_norm_silu_reference(*leaves, EPS, mode, 16)
    grad = torch.randn(found.shape, generator=fresh_generator).to(triton_device)
    for a, b in zip(torch.autograd.grad(found, leaves, grad), torch.autograd.grad(reference, leaves, grad)):
        assert relative_rms(a.cpu(), b.cpu()) < 1e-5


def test_on_triton_pool_ties_are_those_of_rounded_sums(triton_device):
    # 1 and the next larger bfloat16 are the same once 2 is added.
    x = torch.tensor([[1.0, 1.0, 0.5, 1.0]], dtype=torch.bfloat16).view(1, 1, 1, 4).to(triton_device)
    x[..., 1] += 2**-7
    leaf = x.clone().requires_grad_()
    bias, scale = torch.full((1,), 2.0, device=triton_device), torch.ones(1, device=triton_device)
    y = phase_norm_silu(leaf, bias, scale, 1.0, "pool")
    grad = torch.autograd.grad(y.sum(), leaf)[0].flatten()
    assert grad[2] == 0
    assert grad[0] == grad[1] == grad[3] != 0


@pytest.mark.parametrize("mode", MODES)
def test_on_triton_nan_stays_in_its_row(mode, triton_device, fresh_generator):
    x, bias, scale = inputs((2, 4, 4, 8), fresh_generator, torch.float32, triton_device)
    x[1, 2, 3, 17] = float("nan")
    leaf = x.requires_grad_()
    y = phase_norm_silu(leaf, bias, scale, EPS, mode)
    assert y.isnan().sum() == 8
    by_x = torch.autograd.grad(y.sum(), leaf)[0]
    assert by_x[1, 2, 3, 17].isnan()
    assert by_x.isnan().any(-1).sum() == 1


def test_an_odd_image_is_no_blocks():
    x = torch.zeros(1, 3, 4, 8)
    with pytest.raises(ValueError, match="3 x 4"):
        module._launch(x, torch.ones(2), "pool_blocks", 2)


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize(("dtype", "size"), [("bf16", 8), ("bf16", 64), ("bf16", 512), ("fp32", 512)])
def test_compiles_for_every_chip(capability, dtype, size, compile_for):
    pointers = {"x": f"*{dtype}", "bias": "*fp32", "scale": "*fp32"}
    numbers = {"rows": "i32", "width": "i32", "size": "i32", "columns": "i32", "eps": "fp32"}
    rows = min(128, module.TILE // size)
    for pool, layout in ((False, 0), (False, 1), (True, 0), (True, 2)):
        constants = {"LAYOUT": layout, "POOL": pool, "ROWS": rows, "SIZE": size}
        compile_for(module._forward, capability, pointers | {"out": f"*{dtype}"} | numbers, constants, num_warps=4)
        signature = pointers | numbers
        signature |= {"grad": f"*{dtype}", "by_x": f"*{dtype}", "partial": "*fp32", "per_program": "i32"}
        if size == 8:  # an argument of 1, as with few rows, becomes a constant
            constants["per_program"] = 1
        compile_for(module._backward, capability, signature, constants, num_warps=4)
