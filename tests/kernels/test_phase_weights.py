from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from genreward_fast.kernels import phase_weights as module
from genreward_fast.kernels.phase_weights import phase_weights, phase_weights_reference

# (outputs, inputs, side, scale, rows beyond, columns beyond)
SHAPES = [(8, 3, 2, 1, 0, 20), (5, 7, 2, 1, 3, 0), (6, 4, 2, 2, 0, 0), (3, 6, 2, 2, 4, 2), (3, 5, 4, 2, 0, 0)]
LIMITS = {torch.float32: 1e-6, torch.bfloat16: 4e-3}


def case(shape, generator, device="cpu"):
    """The weight, and what to give `phase_weights` beside it and the dtype."""
    outputs, inputs, side, scale, rows, columns = shape
    weight = torch.randn(outputs, inputs, 5, 5, generator=generator).to(device)
    return weight, (side, scale, side**2 * outputs + rows, (side // scale) ** 2 * inputs + columns)


def blocks(x, side):
    """(N, C, H, W) to (N, side² C, H / side, W / side), channels (row, column, C)."""
    n, channels, height, width = x.shape
    pieces = x.reshape(n, channels, height // side, side, width // side, side).permute(0, 3, 5, 1, 2, 4)
    return pieces.reshape(n, side * side * channels, height // side, width // side)


@pytest.mark.parametrize("shape", SHAPES)
def test_reference_is_the_convolution(shape, fresh_generator):
    weight, options = case(shape, fresh_generator)
    side, scale, rows, columns = options
    weight = weight.double()
    image = torch.randn(2, shape[1], 12 // scale, 8 // scale, generator=fresh_generator, dtype=torch.float64)
    scaled = functional.interpolate(image, scale_factor=scale, mode="nearest")
    expected = blocks(functional.conv2d(scaled, weight, padding=2), side)
    x = blocks(image, side // scale)
    # What lies in the channels beyond counts for nothing.
    x = torch.cat([x, torch.randn(2, columns - x.shape[1], *x.shape[2:], dtype=torch.float64)], 1)
    made = phase_weights_reference(weight, torch.float64, *options)
    assert made.shape == (rows, columns, 3, 3)
    found = functional.conv2d(x, made, padding=1)
    assert torch.allclose(found[:, : expected.shape[1]], expected, atol=1e-12)
    assert not found[:, expected.shape[1] :].any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", list(LIMITS))
def test_on_triton_agrees_with_float64(shape, dtype, triton_device, poisoned, fresh_generator, relative_rms):
    weight, options = case(shape, fresh_generator, triton_device)
    leaf, exact = weight.clone().requires_grad_(), weight.cpu().double().requires_grad_()
    found, expected = phase_weights(leaf, dtype, *options), phase_weights_reference(exact, torch.float64, *options)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert relative_rms(found.detach().cpu(), expected.detach()) < LIMITS[dtype]
    grad = torch.randn(expected.shape, generator=fresh_generator).to(dtype)
    by_weight = torch.autograd.grad(found, leaf, grad.to(triton_device))[0]
    assert by_weight.dtype == torch.float32
    assert relative_rms(by_weight.cpu(), torch.autograd.grad(expected, exact, grad.double())[0]) < 1e-6


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize(("side", "scale"), [(2, 1), (2, 2), (4, 2)])
def test_compiles_for_every_chip(capability, side, scale, compile_for):
    numbers = dict.fromkeys(("count", "outputs", "inputs", "columns"), "i32")
    constants = {"SIDE": side, "SCALE": scale, "BLOCK": module.BLOCK}
    compile_for(module._forward, capability, {"weight": "*fp32", "out": "*bf16"} | numbers, constants, num_warps=4)
    compile_for(module._backward, capability, {"grad": "*bf16", "by_weight": "*fp32"} | numbers, constants, num_warps=4)
