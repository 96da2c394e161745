from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from genreward_fast.kernels import space_norm_silu as module
from genreward_fast.kernels.space_norm_silu import space_norm_silu, space_norm_silu_reference

EPS = 1e-4
# (blocks, N, pixels, channels of a block)
SHAPES = [(1, 1, 1, 5), (8, 5, 16, 2), (4, 33, 4, 3), (3, 70, 2, 16)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}


def inputs(shape, generator, dtype, device="cpu"):
    """Arguments whose sums need no rounding, since Triton's interpreter cuts where it should round to the nearest."""
    blocks, n, pixels, width = shape
    size = blocks * pixels * width
    pieces, flat = (torch.randint(-3, 4, (count,), generator=generator) / 8 for count in (n * size, n * size))
    biases = [torch.randint(-4, 5, (size,), generator=generator) / 128 for _ in range(2)]
    scale = 1 + torch.randn(blocks * width, generator=generator) / 2
    pieces, flat = pieces.view(blocks, n, -1).to(dtype), flat.view(n, size).to(dtype)
    return [value.to(device) for value in (pieces, biases[0], flat, biases[1], scale)]


def exact(pieces, pieces_bias, flat, flat_bias, scale):
    blocks, n, _ = pieces.shape
    size = len(scale)
    first = (pieces + pieces_bias.view(blocks, 1, -1)).unflatten(2, (-1, size // blocks)).permute(1, 2, 0, 3)
    x = first.reshape(n, -1, size) + (flat + flat_bias).view(n, -1, size)
    return functional.silu(x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * scale)


def check(function, shape, dtype, device, generator, relative_rms):
    leaves = [value.requires_grad_() for value in inputs(shape, generator, dtype, device)]
    found = function(*leaves, EPS)
    doubles = [leaf.detach().cpu().double().requires_grad_() for leaf in leaves]
    expected = exact(*doubles)
    assert found.dtype == dtype
    assert found.shape == expected.shape
    assert relative_rms(found.detach().cpu(), expected.detach()) < LIMITS[dtype]
    grad = torch.randn(expected.shape, generator=generator).to(dtype)
    gradients = torch.autograd.grad(found, leaves, grad.to(device))
    exact_gradients = torch.autograd.grad(expected, doubles, grad.double())
    sizes = [abs(exact_gradients[0]).sum(1).flatten(), None, abs(exact_gradients[2]).sum(0)]
    for i, (value, other) in enumerate(zip(gradients, exact_gradients)):
        assert value.shape == other.shape
        if i in (1, 3):  # sums that may cancel: their error counts relative to the sum of the magnitudes
            # What a single value adds may itself be a difference of larger ones.
            assert ((value.cpu() - other).abs() <= LIMITS[dtype] * (1 + sizes[i - 1])).all()
        else:
            assert relative_rms(value.cpu(), other) < LIMITS[dtype]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_agrees_with_float64(shape, dtype, fresh_generator, relative_rms):
    check(space_norm_silu_reference, shape, dtype, "cpu", fresh_generator, relative_rms)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_triton_agrees_with_float64(
    shape, dtype, triton_device, poisoned, fresh_generator, relative_rms, monkeypatch
):
    monkeypatch.setattr(module, "MAX_PARTIALS", 3)  # so that a program takes several blocks of rows
    monkeypatch.setattr(module, "TILE", 128)
    check(space_norm_silu, shape, dtype, triton_device, fresh_generator, relative_rms)


def test_on_triton_nan_stays_in_its_pixel(triton_device, fresh_generator):
    values = inputs(SHAPES[1], fresh_generator, torch.float32, triton_device)
    values[0][3, 2, 11] = float("nan")  # pixel 5
    bad = space_norm_silu(*values, EPS).isnan().all(-1).cpu()
    assert bad[2, 5]
    assert bad.sum() == 1


def test_without_rows():
    values = [torch.zeros(2, 0, 12), torch.zeros(24), torch.zeros(0, 24), torch.zeros(24), torch.ones(6)]
    assert space_norm_silu(*values, EPS).shape == (0, 4, 6)


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize(("dtype", "size"), [("bf16", 16), ("bf16", 512), ("fp32", 64)])
def test_compiles_for_every_chip(capability, dtype, size, compile_for):
    pointers = {"pieces": f"*{dtype}", "flat": f"*{dtype}"} | dict.fromkeys(
        ("pieces_bias", "flat_bias", "scale"), "*fp32"
    )
    signature = pointers | dict.fromkeys(("n", "pixels", "width", "size"), "i32") | {"eps": "fp32"}
    constants = {"ROWS": max(1, min(128, module.TILE // size)), "SIZE": size}
    compile_for(module._forward, capability, signature | {"out": f"*{dtype}"}, constants, num_warps=4)
    signature |= dict.fromkeys(("grad", "by_pieces", "by_flat"), f"*{dtype}")
    signature |= {"partial": "*fp32", "per_program": "i32"}
    compile_for(module._backward, capability, signature, constants, num_warps=4)
