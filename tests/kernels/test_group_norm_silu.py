from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from genreward_fast.kernels import group_norm_silu as module
from genreward_fast.kernels.group_norm_silu import group_norm_silu, group_norm_silu_reference
from genreward_fast.kernels.moments import Moments

EPS = 1e-2
# (B, chunks, H, W, C, groups)
SHAPES = [
    (1, [1], 1, 1, 4, 2),
    (2, [4], 3, 5, 6, 3),
    (3, [9, 8], 5, 2, 12, 1),
    (1, [3, 1, 1], 4, 7, 40, 5),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
# (shift, residual, before, around, keep)
WAYS = [
    (False, False, 0, 0, True),
    (True, False, 2, 1, False),
    (True, False, 2, 0, True),
    (False, True, 2, 1, True),
    (True, True, 1, 2, True),
]


def inputs(shape, generator, dtype, device="cpu"):
    """Sums that need no rounding, since Triton's interpreter cuts where it should round to the nearest. Channels and
    frames differ in mean and spread, so that a statistic of others is another."""
    clips, chunks, height, width, size, _ = shape
    frames = sum(chunks)
    far = torch.randint(-3, 4, (size,), generator=generator) + torch.arange(frames).view(-1, 1, 1, 1) // 4
    x, residual = (
        torch.randint(-3, 4, (clips, frames, height, width, size), generator=generator) / 8 for _ in range(2)
    )
    shift = torch.randint(-4, 5, (size,), generator=generator) / 8
    weight, bias = (torch.randn(size, generator=generator) for _ in range(2))
    values = ((x + far).to(dtype), (1 + weight / 2).to(dtype), bias, shift, residual.to(dtype))
    return [value.to(device) for value in values]


def exact(x, weight, bias, shift, residual, shape, before, around):
    """The activation and the sum in float64, chunk by chunk."""
    total = x.double()
    for term in (shift, residual):
        total = total if term is None else total + term.double()
    parts = []
    for chunk in total.split(shape[1], 1):
        groups = chunk.unflatten(-1, (shape[-1], -1))
        middle = groups.mean((1, 2, 3, 5), keepdim=True)
        variance = (groups - middle).square().mean((1, 2, 3, 5), keepdim=True)
        normed = ((groups - middle) / (variance + EPS).sqrt()).flatten(-2)
        parts.append(functional.silu(normed * weight.double() + bias.double()))
    frames = torch.cat(parts, 1)
    return functional.pad(torch.cat([frames[:, :1]] * before + [frames], 1), (0, 0, *(around,) * 4)), total


def check(function, shape, dtype, way, device, generator, relative_rms, **options):
    x, weight, bias, shift, residual = inputs(shape, generator, dtype)
    with_shift, with_residual, before, around, _ = way
    terms = {"shift": shift if with_shift else None, "residual": residual if with_residual else None}
    expected, total = exact(x, weight, bias, *terms.values(), shape, before, around)
    moved = {name: None if term is None else term.to(device) for name, term in terms.items()}
    found, found_total = function(
        *(value.to(device) for value in (x, weight, bias)),
        shape[-1],
        EPS,
        shape[1],
        **moved,
        before=before,
        around=around,
        **options,
    )
    assert found.dtype == dtype
    assert found.shape == expected.shape
    assert relative_rms(found.cpu(), expected) < LIMITS[dtype]
    if options.get("keep", True):
        assert torch.equal(found_total.cpu(), total.to(dtype))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_agrees_with_float64(shape, dtype, way, fresh_generator, relative_rms):
    check(group_norm_silu_reference, shape, dtype, way, "cpu", fresh_generator, relative_rms)


@pytest.mark.parametrize(("shape", "way"), [*zip(SHAPES, WAYS), *((SHAPES[2], way) for way in WAYS)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_triton_agrees_with_float64(
    shape, dtype, way, triton_device, poisoned, fresh_generator, relative_rms, monkeypatch
):
    monkeypatch.setattr(module, "WRITTEN", 256)
    monkeypatch.setattr(module, "TILE", 256)  # several blocks a program, and several programs a chunk
    monkeypatch.setattr(module, "MAX_SPLITS", 4)
    monkeypatch.setattr(module, "FINISHED", 32)
    check(group_norm_silu, shape, dtype, way, triton_device, fresh_generator, relative_rms, keep=way[-1])


def far_from_zero(function, device, generator, relative_rms):
    """Mean 300, deviation 1: sums of plain squares would leave two digits."""
    x = 300 + torch.randn(2, 8, 9, 9, 12, generator=generator)
    weight, bias = torch.ones(12), torch.zeros(12)
    expected, _ = exact(x, weight, bias, None, None, (2, [8], 9, 9, 12, 3), 0, 0)
    found, _ = function(*(value.to(device) for value in (x, weight, bias)), 3, EPS, [8])
    assert relative_rms(found.cpu(), expected) < 1e-4  # a rounding of 300 is 2e-5


def test_reference_far_from_zero(fresh_generator, relative_rms):
    far_from_zero(group_norm_silu_reference, "cpu", fresh_generator, relative_rms)


def test_on_triton_far_from_zero(triton_device, poisoned, fresh_generator, relative_rms):
    far_from_zero(group_norm_silu, triton_device, fresh_generator, relative_rms)


def test_on_triton_nan_stays_in_its_chunk_and_group(triton_device, fresh_generator):
    shape = (2, [3, 2], 3, 4, 6, 2)
    x, weight, bias, *_ = inputs(shape, fresh_generator, torch.float32, triton_device)
    x[1, 3, 1, 2, 4] = float("nan")
    found, _ = group_norm_silu(x, weight, bias, 2, EPS, [3, 2], before=2, around=1)
    expected = torch.zeros(found.shape, dtype=torch.bool)
    expected[1, 2 + 3 :, 1:-1, 1:-1, 3:] = True
    assert torch.equal(found.isnan().cpu(), expected)


def test_on_triton_clips_do_not_depend_on_the_batch(triton_device, fresh_generator):
    shape = (3, [9, 8], 5, 4, 12, 3)
    x, weight, bias, shift, residual = inputs(shape, fresh_generator, torch.bfloat16, triton_device)

    def run(x, residual):
        return group_norm_silu(x, weight, bias, 3, EPS, [9, 8], shift=shift, residual=residual, before=2, around=1)[0]

    together = run(x, residual)
    assert torch.equal(together, torch.cat([run(x[i : i + 1], residual[i : i + 1]) for i in range(3)]))
    assert torch.equal(together, run(x, residual))


def test_on_triton_takes_maps_that_are_not_contiguous(triton_device, fresh_generator, relative_rms):
    x, weight, bias, _, residual = inputs((2, [4], 3, 5, 6, 3), fresh_generator, torch.float32, triton_device)
    turned = [value.transpose(1, 3).contiguous().transpose(1, 3) for value in (x, residual)]
    assert not turned[0].is_contiguous()
    found, total = group_norm_silu(turned[0], weight, bias, 3, EPS, [4], residual=turned[1])
    expected, expected_total = group_norm_silu_reference(x, weight, bias, 3, EPS, [4], residual=residual)
    assert relative_rms(found, expected) < 1e-5
    assert torch.equal(total, expected_total)


def moments_of(x, chunks):
    """Each chunk's, found in two pieces and one of no pixels."""
    pieces = []
    for clip in x.float():
        for chunk in clip.split(chunks):
            first, last = chunk.flatten(0, 2).split([1, chunk[..., 0].numel() - 1])
            pieces.append([[piece.mean(0), (piece - piece.mean(0)).square().sum(0)] for piece in (first, last)])
    values = torch.stack([torch.stack([torch.stack(piece) for piece in chunk]) for chunk in pieces])
    nothing = torch.full_like(values[:, :1], float("nan"))
    counts = torch.tensor([[1.0, chunk * x.shape[2] * x.shape[3] - 1, 0.0] for _ in x for chunk in chunks])
    return Moments(torch.cat([values, nothing], 1).to(x.device), counts.to(x.device))


def with_moments(device, generator, relative_rms):
    x, weight, bias, _, _ = inputs((2, [3, 2, 2], 3, 5, 12, 3), generator, torch.float32, device)
    expected, _ = exact(*(value.cpu() for value in (x, weight, bias)), None, None, (0, [3, 2, 2], 0, 0, 0, 3), 2, 1)
    found, total = group_norm_silu(
        x, weight, bias, 3, EPS, [3, 2, 2], before=2, around=1, moments=moments_of(x, [3, 2, 2])
    )
    assert relative_rms(found, expected) < 1e-5
    assert total is x


def test_with_moments(fresh_generator, relative_rms):
    with_moments("cpu", fresh_generator, relative_rms)


def test_on_triton_with_moments(triton_device, poisoned, fresh_generator, relative_rms):
    with_moments(triton_device, fresh_generator, relative_rms)


def test_moments_total(fresh_generator):
    x = 100 + torch.randn(2, 5, 3, 4, 6, generator=fresh_generator)
    mean, variance = moments_of(x, [3, 2]).total()
    chunks = [chunk.flatten(0, 2).double() for clip in x for chunk in clip.split([3, 2])]
    torch.testing.assert_close(mean.double(), torch.stack([chunk.mean(0) for chunk in chunks]), rtol=1e-6, atol=0)
    expected = torch.stack([chunk.var(0, correction=0) for chunk in chunks])
    torch.testing.assert_close(variance.double(), expected, rtol=1e-4, atol=0)


def in_float8(device, generator, relative_rms):
    """To three bits after the first; too large a number becomes the largest one."""
    x, weight, bias, _, _ = inputs((2, [3], 3, 5, 12, 3), generator, torch.float32, device)
    bias[0] = 1e3
    found, _ = group_norm_silu(x, weight, bias, 3, EPS, [3], before=2, around=1, float8=True)
    assert found.dtype == torch.float8_e4m3fn
    expected, _ = group_norm_silu(x, weight, bias, 3, EPS, [3], before=2, around=1)
    assert found[:, :, 1:-1, 1:-1, 0].float().eq(448).all()
    error = relative_rms(found[..., 1:].float() / module.FLOAT8_FACTOR, expected[..., 1:])
    assert 1e-3 < error < 2**-4


def test_reference_in_float8(fresh_generator, relative_rms):
    in_float8("cpu", fresh_generator, relative_rms)


@pytest.mark.gpu
def test_on_gpu_in_float8(fresh_generator, relative_rms):
    in_float8("cuda", fresh_generator, relative_rms)


def test_no_clips():
    out, _ = group_norm_silu(torch.zeros(0, 4, 3, 5, 6), torch.ones(6), torch.zeros(6), 3, EPS, [4], before=2, around=1)
    assert out.shape == (0, 6, 5, 7, 6)


@pytest.mark.parametrize(
    ("groups", "chunks", "match"), [(3, [3], "chunks"), (3, [2, 1, 2], "chunks"), (3, [5, 0], "chunks"), (4, [5], "6")]
)
def test_refuses_what_does_not_fit(groups, chunks, match):
    with pytest.raises(ValueError, match=match):
        group_norm_silu(torch.zeros(1, 5, 2, 2, 6), torch.ones(6), torch.zeros(6), groups, EPS, chunks)


def test_refuses_moments_of_something_else():
    x = torch.zeros(1, 2, 2, 2, 6)
    moments = moments_of(x, [2])
    with pytest.raises(ValueError, match="moments"):
        group_norm_silu(x, torch.ones(6), torch.zeros(6), 3, EPS, [2], residual=x, moments=moments)


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize(("dtype", "size", "groups"), [("bf16", 8, 4), ("bf16", 512, 32), ("fp32", 128, 32)])
def test_compiles_for_every_chip(capability, dtype, size, groups, compile_launches):
    kind = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    x, vector = (
        torch.empty(2, 17, 60, 60, size, dtype=kind, device="meta"),
        torch.empty(size, dtype=kind, device="meta"),
    )

    def call():
        for shift, residual in [(None, None), (vector, None), (vector, x)]:
            group_norm_silu(
                x, vector, vector, groups, EPS, [9, 8], shift=shift, residual=residual, before=2, keep=False
            )

    assert compile_launches(call, [module], capability) == ["_finish", "_normalise", "_partial_sums"]
