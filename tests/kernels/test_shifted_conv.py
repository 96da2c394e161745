from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from genreward_fast.kernels import moments as moments_module
from genreward_fast.kernels import shifted_conv as module
from genreward_fast.kernels.moments import to_float8
from genreward_fast.kernels.shifted_conv import float8_weight, shifted_conv, shifted_conv_reference, weight_rows

# (B, chunks, H, W, C, N)
SHAPES = [(1, [1], 2, 1, 32, 16), (2, [3], 5, 7, 32, 16), (1, [3, 2, 2], 4, 3, 64, 40), (2, [2, 2], 9, 6, 32, 130)]
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def inputs(shape, generator, dtype=torch.float32, device="cpu"):
    """A padded map with anything in its padding, weights, bias, factor and residual."""
    clips, chunks, height, width, channels, outputs = shape
    x = torch.randn(clips, sum(chunks) + 2, height + 2, width + 2, channels, generator=generator)
    weight = torch.randn(outputs, channels, 3, 3, 3, generator=generator) * (27 * channels) ** -0.5
    bias, factor = torch.randn(outputs, generator=generator), 0.5 + torch.rand(outputs, generator=generator)
    residual = torch.randn(clips, sum(chunks), height, width, outputs, generator=generator)
    made = (x.to(dtype), weight.to(dtype), bias, factor, residual.to(dtype))
    return [value.to(device) for value in made]


def exact(x, weight, bias, factor, residual):
    """In float64."""
    y = functional.conv3d(x.double().permute(0, 4, 1, 2, 3), weight.double()).permute(0, 2, 3, 4, 1)
    y = (y if factor is None else y * factor.double()) + bias.double()
    return y if residual is None else y + residual.double()


@pytest.mark.parametrize("with_factor", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_reference_agrees_with_float64(shape, with_residual, with_factor, fresh_generator, relative_rms):
    x, weight, bias, factor, residual = inputs(shape, fresh_generator)
    ways = {"factor": factor if with_factor else None, "residual": residual if with_residual else None}
    found = shifted_conv_reference(x, weight_rows(weight), bias, dtype=torch.float32, **ways)
    assert relative_rms(found, exact(x, weight, bias, *ways.values())) < 1e-5


@pytest.mark.parametrize(
    ("shape", "dtype", "with_residual"),
    [*((shape, torch.float32, i % 2 == 1) for i, shape in enumerate(SHAPES)), (SHAPES[1], torch.float16, False)],
)
def test_on_triton_agrees_with_float64(
    shape, dtype, with_residual, triton_device, poisoned, fresh_generator, relative_rms, monkeypatch
):
    monkeypatch.setattr(moments_module, "MOST", 2)  # pieces are put together
    monkeypatch.setattr(moments_module, "BLOCK", 64)
    x, weight, bias, factor, residual = inputs(shape, fresh_generator, dtype)
    ways = {"factor": factor if with_residual else None, "residual": residual if with_residual else None}
    expected = exact(x, weight, bias, *ways.values())
    moved = {name: None if value is None else value.to(triton_device) for name, value in ways.items()}
    rows = weight_rows(weight).contiguous()
    found, moments = shifted_conv(
        *(value.to(triton_device) for value in (x, rows, bias)), shape[1], dtype=torch.float32, **moved
    )
    assert relative_rms(found, expected) < LIMITS[dtype]
    mean, variance = (value.cpu().double() for value in moments.total())
    chunks = [chunk.flatten(0, 2).double().cpu() for clip in found for chunk in clip.split(shape[1])]
    torch.testing.assert_close(mean, torch.stack([chunk.mean(0) for chunk in chunks]), rtol=1e-5, atol=1e-5)
    expected = torch.stack([chunk.var(0, correction=0) for chunk in chunks])
    torch.testing.assert_close(variance, expected, rtol=1e-4, atol=1e-6)


def test_on_triton_far_from_zero(triton_device, poisoned, fresh_generator, relative_rms, monkeypatch):
    """Mean 1000, deviation 1: sums of plain squares would leave no digit of the spread."""
    monkeypatch.setattr(moments_module, "MOST", 2)  # pieces are put together
    monkeypatch.setattr(moments_module, "BLOCK", 64)
    x, weight, bias, _, _ = inputs((1, [4, 4], 9, 9, 32, 16), fresh_generator)
    rows = weight_rows(weight).contiguous()
    found, moments = shifted_conv(
        *(value.to(triton_device) for value in (x, rows, bias + 1000)), [4, 4], dtype=torch.float32
    )
    variance = torch.stack([chunk.flatten(0, 2).double().var(0, correction=0) for chunk in found[0].cpu().split(4)])
    assert relative_rms(moments.total()[1], variance) < 1e-3


def test_on_triton_clips_do_not_depend_on_the_batch(triton_device, fresh_generator):
    x, weight, bias, factor, residual = inputs((3, [3, 2], 5, 4, 32, 20), fresh_generator, device=triton_device)
    rows = weight_rows(weight).contiguous()

    def run(x, residual):
        y, moments = shifted_conv(x, rows, bias, [3, 2], factor=factor, residual=residual, dtype=torch.float32)
        return [y, *moments.total()]

    alone = [run(x[i : i + 1], residual[i : i + 1]) for i in range(3)]
    for together, apart in zip(run(x, residual), zip(*alone)):
        assert torch.equal(together, torch.cat(apart))


def test_float8_weights(fresh_generator, relative_rms):
    weight = torch.randn(6, 32, 3, 3, 3, generator=fresh_generator) * torch.logspace(-3, 3, 6).view(-1, 1, 1, 1, 1)
    weight[2] = 0
    rows, factor = float8_weight(weight, 4.0)
    assert rows.dtype == torch.float8_e4m3fn
    found = rows.float() * factor.unsqueeze(1) * 4
    for i in (0, 1, 3, 4, 5):  # the smallest and the largest as well as the others
        assert 1e-3 < relative_rms(found[i], weight_rows(weight)[i]) < 2**-4
    assert not found[2].any()


def test_float8_rounds_what_is_too_large_to_the_largest():
    assert to_float8(torch.tensor([1e6, -1e6, 449.0, 1.0])).tolist() == [448, -448, 448, 1]


@pytest.mark.gpu
@pytest.mark.parametrize(("channels", "outputs"), [(32, 32), (128, 128), (256, 256), (128, 256)])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16])
def test_on_gpu_at_full_widths(dtype, channels, outputs, poisoned, fresh_generator, relative_rms):
    shape = (2, [8, 8], 20, 24, channels, outputs)
    x, weight, bias, factor, residual = inputs(shape, fresh_generator, device="cuda")
    residual = residual.bfloat16()
    rows = weight_rows(weight).contiguous()
    if dtype == torch.float8_e4m3fn:
        x = to_float8(x * 8)
        rows, factor = float8_weight(weight, 8.0)
    else:
        x, rows = x.to(dtype), rows.to(dtype)
    options = {"factor": factor, "residual": residual}
    found, moments = shifted_conv(x, rows, bias, shape[1], **options, dtype=torch.bfloat16)
    expected = shifted_conv_reference(x.cpu().float(), rows.cpu().float(), bias.cpu(), dtype=torch.float32,
                                      factor=factor.cpu(), residual=residual.cpu())  # fmt: skip
    assert relative_rms(found, expected) < 1e-2
    chunks = [chunk.flatten(0, 2).double().cpu() for clip in found for chunk in clip.split(8)]
    expected = torch.stack([chunk.var(0, correction=0) for chunk in chunks])
    torch.testing.assert_close(moments.total()[1].cpu().double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("chunks", "rows", "match"), [([2], 27 * 32, "chunks"), ([2, 0, 1], 27 * 32, "chunks"), ([3], 27 * 16, "weights")]
)
def test_refuses_what_does_not_fit(chunks, rows, match):
    with pytest.raises(ValueError, match=match):
        shifted_conv(torch.zeros(1, 5, 4, 4, 32), torch.zeros(6, rows), torch.zeros(6), chunks, dtype=torch.float32)


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float32])
def test_compiles_for_every_chip(capability, dtype, compile_launches, monkeypatch):
    if dtype == torch.float8_e4m3fn and capability < 89:
        pytest.skip("these have no float8")
    if capability == 90:
        monkeypatch.setattr(module, "_shared_memory", lambda device: 227 * 1024)

    def call():
        for channels, outputs, added in [(128, 128, True), (256, 256, False)]:
            x = torch.empty(1, 10, 482, 482, channels, dtype=dtype, device="meta")
            rows = torch.empty(outputs, 27 * channels, dtype=dtype, device="meta")
            vector = torch.empty(outputs, device="meta")
            residual = torch.empty(1, 8, 480, 480, outputs, dtype=torch.bfloat16, device="meta") if added else None
            shifted_conv(x, rows, vector, [8], factor=vector, residual=residual, dtype=torch.bfloat16)

    assert compile_launches(call, [module, moments_module], capability, 227 if capability == 90 else 99) == [
        "_forward",
        "_merge",
    ]
