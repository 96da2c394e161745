from __future__ import annotations

import pytest
import torch

from genreward_fast.kernels import gated_silu as module
from genreward_fast.kernels.gated_silu import gated_silu, gated_silu_reference

SHAPES = [(1, 2), (7, 10), (2, 3, 66), (5, 2050)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}


def inputs(shape, generator, dtype, device="cpu"):
    """Gates of both signs, and products that are nowhere near 0 altogether."""
    gate = 4 * torch.rand(*shape[:-1], shape[-1] // 2, generator=generator) - 1
    up = 1 + torch.rand(gate.shape, generator=generator)
    return torch.cat([gate, up], -1).to(dtype).to(device)


def exact(x):
    gate, up = x.cpu().double().chunk(2, -1)
    return gate / (1 + (-gate).exp()) * up


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_agrees_with_float64(shape, dtype, fresh_generator, relative_rms):
    x = inputs(shape, fresh_generator, dtype)
    found = gated_silu_reference(x)
    assert found.dtype == dtype
    assert relative_rms(found, exact(x)) < LIMITS[dtype]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_triton_agrees_with_float64(shape, dtype, triton_device, poisoned, fresh_generator, relative_rms):
    x = inputs(shape, fresh_generator, dtype, triton_device)
    found = gated_silu(x)
    assert found.dtype == dtype
    assert found.shape == (*shape[:-1], shape[-1] // 2)
    assert relative_rms(found, exact(x)) < LIMITS[dtype]


def test_on_triton_takes_what_is_not_contiguous(triton_device, fresh_generator, relative_rms):
    x = inputs((4, 6, 20), fresh_generator, torch.float32, triton_device).transpose(0, 1)
    assert not x.is_contiguous()
    assert relative_rms(gated_silu(x), exact(x)) < 1e-5


def test_on_triton_nan_stays_in_its_place(triton_device, fresh_generator):
    x = inputs((9, 20), fresh_generator, torch.float32, triton_device)
    x[4, 3], x[5, 17] = float("nan"), float("nan")
    bad = gated_silu(x).isnan().cpu()
    assert bad[4, 3]
    assert bad[5, 7]
    assert bad.sum() == 2


def test_without_rows():
    assert gated_silu(torch.zeros(0, 6)).shape == (0, 3)


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize(("dtype", "size"), [("bfloat16", 1536), ("float32", 33)])
def test_compiles_for_every_chip(capability, dtype, size, compile_launches):
    x = torch.empty(201, 2 * size, dtype=getattr(torch, dtype), device="meta")
    assert compile_launches(lambda: gated_silu(x), [module], capability) == ["_activate"]
