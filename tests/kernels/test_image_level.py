from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from genreward_fast.kernels import image_level as module
from genreward_fast.kernels.image_level import image_level, image_level_reference, sum_weights, window_weights
from genreward_fast.kernels.phase_norm_silu import unshuffle
from genreward_fast.kernels.triton_support import INTERPRETED

EPS = 1e-4
# Leading axes, H, W, C.
SHAPES = [((), 4, 72, 5), ((3,), 12, 4, 8), ((2, 3), 8, 20, 16), ((5,), 4, 4, 32)]
LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
# Triton's interpreter cannot multiply matrices of bfloat16.
DTYPES = [torch.float32, torch.float16] if INTERPRETED else list(LIMITS)


def case(shape, generator, device="cpu", flat=False):
    """An image and leaves. In flat areas of black and white, with coarse weights, convolutions are exact in float32 and
    many pixels tie."""
    lead, height, width, size = shape
    image = torch.randint(0, 256, (*lead, height, width, 3), generator=generator, dtype=torch.uint8)
    weight = torch.randn(size, 3, 5, 5, generator=generator) / 75**0.5
    bias = torch.randn(size, generator=generator) / 4
    if flat:
        coarse = torch.randint(0, 2, (*lead, height // 4, width // 4, 1), generator=generator, dtype=torch.uint8)
        image = 255 * coarse.repeat_interleave(4, -3).repeat_interleave(4, -2).expand_as(image).contiguous()
        weight, bias = (weight * 64).round() / 64, (bias * 64).round() / 64
    scale = 1 + torch.randn(size, generator=generator) / 2
    return image.to(device), [value.to(device).requires_grad_() for value in (weight, bias, scale)]


def rounded(x, dtype):
    """x in float64, rounded to `dtype` as if that were not so for gradients."""
    return x + (x.detach().to(dtype).double() - x.detach())


def exact(image, weight, bias, scale, dtype):
    """The result in float64 with the roundings that are meant."""
    pixels = (image.reshape(-1, *image.shape[-3:]).to(dtype) / 255 - 0.5).permute(0, 3, 1, 2).double()
    x = rounded(functional.conv2d(pixels, rounded(weight, dtype), padding=2), dtype)
    x = rounded(x + rounded(bias, dtype)[:, None, None], dtype).permute(0, 2, 3, 1)
    pixels = unshuffle(x.contiguous()).unflatten(-1, (4, -1)).amax(-2)
    normed = pixels / (pixels.square().mean(-1, keepdim=True) + EPS).sqrt() * scale
    return unshuffle(functional.silu(normed))


def check(found, image, leaves, generator, relative_rms, limit):
    """Value and gradients, beside those in float64."""
    copies = [leaf.detach().cpu().double().requires_grad_() for leaf in leaves]
    expected = exact(image.cpu(), *copies, found.dtype)
    assert found.shape == expected.shape
    assert relative_rms(found.detach().cpu(), expected.detach()) < limit
    grad = torch.randn(expected.shape, generator=generator).to(found.dtype)
    by_leaves = torch.autograd.grad(found, leaves, grad.to(found.device))
    for a, b in zip(by_leaves, torch.autograd.grad(expected, copies, grad.double())):
        assert a.dtype == torch.float32
        assert relative_rms(a.cpu(), b) < 2 * limit


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_reference_agrees_with_float64(shape, flat, fresh_generator, relative_rms):
    image, leaves = case(shape, fresh_generator, flat=flat)
    found = image_level_reference(image, *leaves, EPS, torch.float32)
    check(found, image, leaves, fresh_generator, relative_rms, 1e-5)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_triton_agrees_with_float64(
    shape, flat, dtype, triton_device, poisoned, fresh_generator, relative_rms, monkeypatch
):
    monkeypatch.setattr(module, "MAX_PROGRAMS", 3)  # so that a program takes several blocks of rows
    monkeypatch.setattr(module, "PARTIALS", 2)
    image, leaves = case(shape, fresh_generator, triton_device, flat)
    found = image_level(image, *leaves, EPS, dtype)
    assert found.dtype == dtype
    # Where sums are not exact, the order of adding decides how some are rounded and which of their phases is largest.
    limit = LIMITS[dtype] if flat or dtype == torch.float32 else 4 * LIMITS[dtype]
    check(found, image, leaves, fresh_generator, relative_rms, limit)


def test_on_triton_takes_a_part_of_a_batch(triton_device, fresh_generator):
    image, leaves = case(((3, 4), 8, 4, 4), fresh_generator, triton_device)
    for part in (image[:, 1:], image[1:, 2:3], image.transpose(0, 1), image[:, 1]):
        found, expected = (image_level(x, *leaves, EPS, torch.float32) for x in (part, part.clone()))
        assert torch.equal(found, expected)


def test_on_triton_splits_the_gradient_among_ties(triton_device):
    """With a single tap in the middle, the convolution is the image's first colour."""
    image = torch.zeros(1, 4, 4, 3, dtype=torch.uint8, device=triton_device)
    image[0, 0, 0, 0] = image[0, 1, 0, 0] = 255  # two of the first four pixels
    weight = torch.zeros(1, 3, 5, 5)
    weight[0, 0, 2, 2] = 1.0
    leaves = [value.to(triton_device).requires_grad_() for value in (weight, torch.ones(1), torch.ones(1))]
    y = image_level(image, *leaves, 1.0, torch.float32)
    by_weight, by_bias, _ = torch.autograd.grad(y[0, 0, 0, 0], leaves)
    assert by_bias[0] > 0
    # The tap right of the middle reads both black neighbours, the one above one white pixel and the border.
    assert torch.allclose(by_weight[0, 0, 2, 2], by_bias[0] * 0.5)
    assert torch.allclose(by_weight[0, 0, 2, 3], by_bias[0] * -0.5)
    assert torch.allclose(by_weight[0, 0, 1, 2], by_bias[0] * 0.25)
    assert by_weight[0, 0, 2, 1] == 0


def test_on_triton_nan_shows(triton_device, fresh_generator):
    image, leaves = case(((2,), 8, 8, 4), fresh_generator, triton_device)
    grad = torch.zeros(2, 2, 2, 16, device=triton_device)
    grad[1, 0, 1, 5] = float("nan")
    by_leaves = torch.autograd.grad(image_level(image, *leaves, EPS, torch.float32), leaves, grad)
    assert all(by_leaf.isnan().any() for by_leaf in by_leaves)
    with torch.no_grad():
        leaves[0][2, 1, 0, 3] = float("nan")
    y = image_level(image, *leaves, EPS, torch.float32)
    assert y.isnan().all()
    by_weight, by_bias, _ = torch.autograd.grad(y.sum(), leaves)
    assert by_weight.isnan().all()
    assert by_bias.isnan().all()


def test_on_triton_repeats_its_bits(triton_device, fresh_generator):
    image, leaves = case(((7,), 8, 8, 8), fresh_generator, triton_device)
    runs = [torch.autograd.grad(image_level(image, *leaves, EPS, torch.float32).sum(), leaves) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs))


def test_on_triton_without_images(triton_device, fresh_generator):
    image, leaves = case(((0,), 8, 4, 6), fresh_generator, triton_device)
    assert image_level(image, *leaves, EPS, torch.float32).shape == (0, 2, 1, 24)


def placed(weight, size):
    """What `window_weights` makes, in plain PyTorch, without the rows beyond the window."""
    channels = len(weight)
    window = weight.new_zeros(6, 6, 3, 4, size)
    for phase in range(4):
        row, column = divmod(phase, 2)
        window[row : row + 5, column : column + 5, :, phase, :channels] = weight.permute(2, 3, 1, 0)
    return window.view(3, 2, 3, 2, 3, 4 * size).transpose(1, 2).reshape(108, 4 * size)


@pytest.mark.parametrize(("channels", "size"), [(3, 16), (16, 16), (21, 32)])
def test_on_triton_window_weights_have_their_places(channels, size, triton_device, poisoned, fresh_generator):
    weight = torch.randn(channels, 3, 5, 5, generator=fresh_generator).to(triton_device)
    found = window_weights(weight, torch.float32)
    assert torch.equal(found[:108], placed(weight, size))
    assert not found[108:].any()


@pytest.mark.parametrize(("channels", "size", "programs"), [(3, 16, 1), (21, 32, 131)])
def test_on_triton_sums_shares_of_the_gradient(
    channels, size, programs, triton_device, poisoned, fresh_generator, relative_rms
):
    partial = torch.randn(programs, 108, 4 * size, generator=fresh_generator)
    weight = torch.zeros(channels, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(placed(weight, size), weight, partial.double().sum(0))[0]
    found = sum_weights(partial.to(triton_device), channels)
    assert found.shape == weight.shape
    assert relative_rms(found.cpu(), expected) < 1e-6


def test_sizes_that_do_not_fit():
    weight, vector = torch.zeros(33, 3, 5, 5), torch.zeros(33)
    with pytest.raises(ValueError, match="6 x 8"):
        image_level(torch.zeros(1, 6, 8, 3, dtype=torch.uint8), weight, vector, vector, EPS, torch.float32)
    with pytest.raises(ValueError, match="33"):
        image_level(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), weight, vector, vector, EPS, torch.float32)


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize(("dtype", "size"), [(torch.bfloat16, 8), (torch.bfloat16, 32), (torch.float32, 32)])
def test_compiles_for_every_chip(capability, dtype, size, compile_launches):
    image = torch.zeros(1024, 64, 64, 3, dtype=torch.uint8, device="meta")
    weight = torch.zeros(size, 3, 5, 5, device="meta", requires_grad=True)
    bias, scale = (torch.zeros(size, device="meta", requires_grad=True) for _ in range(2))

    def call():
        image_level(image, weight, bias, scale, EPS, dtype).sum().backward()

    names = ["_backward", "_forward", "_sum_weights", "_weights"]
    assert compile_launches(call, [module], capability) == names
