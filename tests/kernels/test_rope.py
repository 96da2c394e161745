from __future__ import annotations

import pytest
import torch

from genreward_fast.kernels import rope as module
from genreward_fast.kernels.rope import rope, rope_reference

# Pictures, tokens, projections, heads, size of a head; patches
SHAPES = [((1, 1, 3, 1, 2), 1), ((2, 9, 3, 3, 8), 6), ((3, 7, 2, 5, 12), 7), ((1, 40, 3, 2, 64), 35)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}


def inputs(shape, patches, generator, dtype, device="cpu"):
    x = torch.randn(shape, generator=generator)
    angle = 6.3 * torch.rand(patches, shape[-1] // 2, generator=generator)
    return [value.to(device) for value in (x.to(dtype), angle.cos(), angle.sin())]


def exact(x, cosine, sine):
    """As products of complex numbers."""
    x, patches = x.cpu().double(), len(cosine)
    first, second = x[:, x.shape[1] - patches :, :-1].chunk(2, -1)
    by = torch.complex(cosine.cpu().double(), sine.cpu().double())[:, None, None]
    rotated = torch.complex(first.contiguous(), second.contiguous()) * by
    expected = x.clone()
    expected[:, x.shape[1] - patches :, :-1] = torch.cat([rotated.real, rotated.imag], -1)
    return expected


def check(function, shape, patches, dtype, device, generator, relative_rms):
    x, cosine, sine = inputs(shape, patches, generator, dtype, device)
    before, expected = x.clone(), exact(x, cosine, sine)
    function(x, cosine, sine)
    assert relative_rms(x, expected) < LIMITS[dtype]
    assert torch.equal(x[:, : shape[1] - patches], before[:, : shape[1] - patches])
    assert torch.equal(x[:, :, -1], before[:, :, -1])


@pytest.mark.parametrize(("shape", "patches"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_agrees_with_float64(shape, patches, dtype, fresh_generator, relative_rms):
    check(rope_reference, shape, patches, dtype, "cpu", fresh_generator, relative_rms)


@pytest.mark.parametrize(("shape", "patches"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_triton_agrees_with_float64(shape, patches, dtype, triton_device, fresh_generator, relative_rms):
    check(rope, shape, patches, dtype, triton_device, fresh_generator, relative_rms)


def test_on_triton_nan_stays_in_its_pair(triton_device, fresh_generator):
    x, cosine, sine = inputs((2, 5, 3, 2, 8), 4, fresh_generator, torch.float32, triton_device)
    x[1, 2, 1, 1, 6] = float("nan")
    rope(x, cosine, sine)
    bad = x.isnan().cpu()
    assert bad[1, 2, 1, 1, 2]
    assert bad[1, 2, 1, 1, 6]
    assert bad.sum() == 2


@pytest.mark.parametrize("case", ["turned", "heads", "patches"])
def test_refuses_what_does_not_fit(case, fresh_generator):
    x, cosine, sine = inputs((2, 5, 3, 2, 8), 4, fresh_generator, torch.float32)
    given = {
        "turned": (x.transpose(0, 1).contiguous().transpose(0, 1), cosine, sine),
        "heads": (x, cosine[:, :3], sine[:, :3]),
        "patches": (x, cosine.repeat(2, 1), sine.repeat(2, 1)),
    }[case]
    with pytest.raises(ValueError, match="do not fit"):
        rope(*given)


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize(("dtype", "heads", "size"), [("bfloat16", 6, 64), ("float32", 3, 12)])
def test_compiles_for_every_chip(capability, dtype, heads, size, compile_launches):
    table = torch.empty(196, size // 2, device="meta")

    def call():
        for kinds in (3, 2):
            rope(torch.empty(2, 201, kinds, heads, size, dtype=getattr(torch, dtype), device="meta"), table, table)

    assert compile_launches(call, [module], capability) == ["_rotate"]
