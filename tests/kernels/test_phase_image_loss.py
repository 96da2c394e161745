from __future__ import annotations

import pytest
import torch

from genreward_fast.kernels import phase_image_loss as module
from genreward_fast.kernels.phase_image_loss import phase_image_loss, phase_image_loss_reference, phase_pixels
from genreward_fast.kernels.triton_support import INTERPRETED

# (leading axes, H, W in blocks, channels, side)
SHAPES = [((5,), 2, 2, 12, 2), ((2, 3), 4, 3, 16, 2), ((3,), 3, 5, 48, 4), ((2, 2), 8, 8, 64, 4)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
if INTERPRETED:  # which rounds to bfloat16 down, not to the nearest
    LIMITS[torch.bfloat16] *= 2


def inputs(shape, generator, dtype, device="cpu"):
    """x, bias, and images that are a part of a longer batch. The sums of x and bias need no rounding."""
    lead, height, width, channels, side = shape
    images = (*lead[:-1], lead[-1] + 2, side * height, side * width, 3)
    image = torch.randint(0, 256, images, generator=generator, dtype=torch.uint8).to(device)
    x = torch.randint(-60, 61, (torch.Size(lead).numel(), height, width, channels), generator=generator) / 16
    bias = torch.tensor([0.25, -0.125, 0.0])
    return x.to(dtype).to(device), bias.to(device), image[1:-1] if len(lead) == 1 else image[:, 1:-1]


def exact(x, bias, image, side):
    """The loss in float64 and the leaves it is of."""
    leaves = [value.cpu().double().requires_grad_() for value in (x, bias)]
    n, height, width, _ = x.shape
    pieces = leaves[0][..., : 3 * side**2].unflatten(-1, (side, side, 3)) + leaves[1]
    pixels = pieces.permute(0, 1, 3, 2, 4, 5).reshape(n, side * height, side * width, 3).sigmoid()
    target = image.cpu().double().reshape(pixels.shape) / 255
    return (pixels - target).square().sum((-3, -2, -1)), leaves


def check(found, leaves, image, side, generator, relative_rms):
    dtype = leaves[0].dtype
    expected, exact_leaves = exact(*(leaf.detach() for leaf in leaves), image, side)
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert relative_rms(found.detach().cpu(), expected.detach()) < LIMITS[dtype]
    grad = torch.randn(expected.shape, generator=generator)
    found = torch.autograd.grad(found, leaves, grad.to(found.device))
    expected = torch.autograd.grad(expected, exact_leaves, grad.double())
    assert relative_rms(found[0].cpu(), expected[0]) < LIMITS[dtype]
    error = (found[1].cpu().double() - expected[1]).abs()
    assert (error <= LIMITS[dtype] * expected[0].abs().sum()).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_agrees_with_float64(shape, dtype, fresh_generator, relative_rms):
    x, bias, image = inputs(shape, fresh_generator, dtype)
    leaves = [x.requires_grad_(), bias.requires_grad_()]
    found = phase_image_loss_reference(*leaves, image, shape[-1])
    check(found, leaves, image, shape[-1], fresh_generator, relative_rms)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_triton_agrees_with_float64(
    shape, dtype, triton_device, poisoned, fresh_generator, relative_rms, monkeypatch
):
    monkeypatch.setattr(module, "TILE", 128)  # so that a program takes several tiles
    x, bias, image = inputs(shape, fresh_generator, dtype, triton_device)
    leaves = [x.requires_grad_(), bias.requires_grad_()]
    found = phase_image_loss(*leaves, image, shape[-1])
    check(found, leaves, image, shape[-1], fresh_generator, relative_rms)


def test_on_triton_nan_stays_in_its_image(triton_device, fresh_generator):
    x, bias, image = inputs(SHAPES[1], fresh_generator, torch.float32, triton_device)
    x[4, 2, 1, 7] = float("nan")
    assert phase_image_loss(x, bias, image, 2).isnan().tolist() == [n == 4 for n in range(6)]
    x[4, 2, 1, 7], x[4, 2, 1, 13] = 0.0, float("nan")  # this channel counts for nothing
    assert not phase_image_loss(x, bias, image, 2).isnan().any()


def test_pixels_are_in_their_places():
    x = torch.arange(2 * 3 * 2 * 16).view(2, 3, 2, 16) / 100
    pixels = phase_pixels(x, torch.zeros(3), 2)
    assert pixels.shape == (2, 6, 4, 3)
    assert torch.equal(pixels[1, 5, 2], x[1, 2, 1, 6:9].sigmoid())


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize(("dtype", "side"), [("bf16", 4), ("bf16", 2), ("fp32", 4)])
def test_compiles_for_every_chip(capability, dtype, side, compile_for):
    names = ("rows", "width", "columns", "per", "outer", "inner")
    signature = {"x": f"*{dtype}", "bias": "*fp32", "image": "*u8"} | dict.fromkeys(names, "i32")
    size = 64 if side == 4 else 16
    constants = {"SIDE": side, "ROWS": module.TILE // size, "SIZE": size}
    compile_for(module._forward, capability, signature | {"loss": "*fp32"}, constants, num_warps=4)
    signature |= {"grad": "*fp32", "by_x": f"*{dtype}", "partial": "*fp32"}
    compile_for(module._backward, capability, signature, constants, num_warps=4)
