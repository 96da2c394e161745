from __future__ import annotations

import os

import pytest
import torch
from torch.nn import functional

from genreward_fast.kernels import image_conv_pool as module
from genreward_fast.kernels.image_conv_pool import image_conv_pool, image_conv_pool_reference

EPS = 1e-4
# (leading axes, H, W, C)
SHAPES = [((1,), 4, 8, 16), ((2, 3), 12, 8, 16), ((3,), 16, 12, 32)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
if os.environ.get("TRITON_INTERPRET") == "1":
    DTYPES.pop()  # the interpreter's dot takes the bits of a bfloat16 for an integer


def inputs(shape, generator, device="cpu"):
    """Images with flat areas, a part of a longer batch; weights, bias and scale in float32."""
    lead, height, width, channels = shape
    image = torch.randint(0, 256, (*lead[:-1], lead[-1] + 2, height, width, 3), generator=generator, dtype=torch.uint8)
    image[..., : height // 2 + 2, : width // 2 + 2, :] = 17
    image = image[1:-1] if len(lead) == 1 else image[:, 1:-1]
    weight = torch.randn(channels, 3, 5, 5, generator=generator) / 8
    bias, scale = torch.randn(channels, generator=generator), 1 + torch.randn(channels, generator=generator) / 4
    return [value.to(device) for value in (image, weight, bias, scale)]


def exact(image, weight, bias, scale):
    """The result in float64, and its leaves."""
    leaves = [value.cpu().double().requires_grad_() for value in (weight, bias, scale)]
    x = image.cpu().reshape(-1, *image.shape[-3:]).double().permute(0, 3, 1, 2) / 255 - 0.5
    y = functional.conv2d(x, leaves[0], leaves[1], padding=2)
    pooled = y.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5)).permute(0, 2, 3, 1)
    y = functional.silu(pooled / (pooled.square().mean(-1, keepdim=True) + EPS).sqrt() * leaves[2])
    pieces = y.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3)
    return pieces.flatten(3), leaves


def check(function, shape, dtype, device, generator, relative_rms, limit):
    image, *parameters = inputs(shape, generator, device)
    leaves = [value.requires_grad_() for value in parameters]
    found = function(image, *leaves, EPS, dtype)
    expected, exact_leaves = exact(image, *parameters)
    assert found.dtype == dtype
    assert found.shape == expected.shape
    assert relative_rms(found.detach().cpu(), expected.detach()) < limit
    with torch.no_grad():
        assert torch.equal(function(image, *parameters, EPS, dtype), found)
    grad = torch.randn(expected.shape, generator=generator).to(dtype)
    gradients = torch.autograd.grad(found, leaves, grad.to(device))
    for value, other in zip(gradients, torch.autograd.grad(expected, exact_leaves, grad.double())):
        assert value.dtype == torch.float32
        assert relative_rms(value.cpu(), other) < 10 * limit  # sums that cancel, of shares that a rounding may move


@pytest.mark.parametrize("shape", SHAPES)
def test_reference_agrees_with_float64(shape, fresh_generator, relative_rms):
    check(image_conv_pool_reference, shape, torch.float32, "cpu", fresh_generator, relative_rms, 1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_triton_agrees_with_float64(
    shape, dtype, triton_device, poisoned, fresh_generator, relative_rms, monkeypatch
):
    monkeypatch.setattr(module, "MAX_PARTIALS", 2)  # so that a program takes several blocks of rows
    limit = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype]
    check(image_conv_pool, shape, dtype, triton_device, fresh_generator, relative_rms, limit)


def test_on_triton_nan_weight_shows(triton_device, fresh_generator):
    image, weight, bias, scale = inputs(SHAPES[0], fresh_generator, triton_device)
    weight[3, 1, 2, 2] = float("nan")
    y = image_conv_pool(image, weight.requires_grad_(), bias, scale, EPS, torch.float32)
    assert y.isnan().all()
    assert torch.autograd.grad(y.sum(), weight)[0].isnan().any()


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize("size", module.SIZES)
def test_compiles_for_every_chip(capability, size, compile_for):
    shape = {"SIZE": size, "PATCH": module.PATCH}
    compile_for(module._taps, capability, {"weight": "*fp32", "taps": "*bf16"}, shape, num_warps=4)
    numbers = {"rows": "i32", "height": "i32", "width": "i32", "eps": "fp32"}
    names = ("image", "taps", "out", "highest")
    signature = dict.fromkeys(names, "*bf16") | {"bias": "*fp32", "scale": "*fp32", "ties": "*u8"} | numbers
    compile_for(module._forward, capability, signature, shape | {"KEEP": True, "ROWS": module.ROWS}, num_warps=4)
    signature = dict.fromkeys(("grad", "image", "highest"), "*bf16") | {"ties": "*u8", "per_program": "i32"} | numbers
    signature |= dict.fromkeys(("scale", "partial"), "*fp32")
    compile_for(module._backward, capability, signature, shape | {"ROWS": module.GRADIENT_ROWS}, num_warps=8)
