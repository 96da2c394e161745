from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from genreward_fast.kernels import frame_conv as module
from genreward_fast.kernels import moments as moments_module
from genreward_fast.kernels import shifted_conv
from genreward_fast.kernels.frame_conv import frame_conv, frame_conv_reference

# (B, chunks, H, W, N)
SHAPES = [(1, [1], 2, 1, 16), (2, [3], 5, 7, 16), (1, [3, 2, 2], 4, 3, 40), (2, [1], 6, 9, 130)]
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def inputs(shape, generator, dtype, device="cpu"):
    clips, chunks, height, width, outputs = shape
    frames = torch.randint(0, 256, (clips, sum(chunks), height, width, 3), generator=generator, dtype=torch.uint8)
    weight = torch.randn(outputs, 3, 3, 3, 3, generator=generator) / 9
    bias = torch.randn(outputs, generator=generator)
    return frames.to(device), weight.to(dtype).to(device), bias.to(dtype).to(device)


def exact(frames, weight, bias):
    """In float64, of pixels scaled without rounding; a frame before the first one is the first one."""
    pixels = frames.double().permute(0, 4, 1, 2, 3) / 127.5 - 1
    pixels = functional.pad(pixels, (1, 1, 1, 1))
    times = range(pixels.shape[2])
    seen = [torch.stack([pixels[:, :, max(0, time - back)] for back in (2, 1, 0)], 2) for time in times]
    parts = [functional.conv3d(three, weight.double(), bias.double()) for three in seen]
    return torch.cat(parts, 2).permute(0, 2, 3, 4, 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", LIMITS)
def test_reference_agrees_with_float64(shape, dtype, fresh_generator, relative_rms):
    given = inputs(shape, fresh_generator, dtype)
    found = frame_conv_reference(*given)
    assert found.dtype == dtype
    assert relative_rms(found, exact(*given)) < LIMITS[dtype]


@pytest.mark.parametrize(
    ("shape", "dtype"), [*((shape, torch.float32) for shape in SHAPES), (SHAPES[2], torch.float16)]
)
def test_on_triton_agrees_with_float64(
    shape, dtype, triton_device, poisoned, fresh_generator, relative_rms, monkeypatch
):
    monkeypatch.setattr(module, "BLOCK", 16)  # several blocks a frame
    monkeypatch.setattr(moments_module, "MOST", 2)  # pieces are put together
    monkeypatch.setattr(moments_module, "BLOCK", 64)
    given = inputs(shape, fresh_generator, dtype)
    found, moments = frame_conv(*(value.to(triton_device) for value in given), shape[1])
    assert found.dtype == dtype
    assert relative_rms(found, exact(*given)) < LIMITS[dtype]
    means = [chunk.flatten(0, 2).double().mean(0).cpu() for clip in found for chunk in clip.split(shape[1])]
    torch.testing.assert_close(moments.total()[0].cpu().double(), torch.stack(means), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("side", [64, 120])
def test_on_gpu_at_full_width(side, poisoned, fresh_generator, relative_rms):
    given = inputs((2, [8, 8], side, side, 128), fresh_generator, torch.bfloat16)
    found, moments = frame_conv(*(value.cuda() for value in given), [8, 8])
    assert relative_rms(found, exact(*given)) < 1e-2
    chunks = [chunk.flatten(0, 2).double().cpu() for clip in found for chunk in clip.split(8)]
    expected = torch.stack([chunk.var(0, correction=0) for chunk in chunks])
    torch.testing.assert_close(moments.total()[1].cpu().double(), expected, rtol=1e-4, atol=1e-6)


def test_on_triton_takes_weights_in_any_layout(triton_device, fresh_generator):
    frames, weight, bias = inputs((1, [2], 4, 5, 16), fresh_generator, torch.float32, triton_device)
    last = weight.contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(frame_conv(frames, last, bias, [2])[0], frame_conv(frames, weight, bias, [2])[0])


@pytest.mark.parametrize(
    ("frames", "weight", "chunks", "match"),
    [
        (torch.zeros(1, 2, 4, 4, 3), (6, 3, 3, 3, 3), [2], "uint8"),
        (torch.zeros(1, 2, 4, 4, 4, dtype=torch.uint8), (6, 3, 3, 3, 3), [2], "uint8"),
        (torch.zeros(1, 2, 4, 4, 3, dtype=torch.uint8), (6, 4, 3, 3, 3), [2], "weight"),
        (torch.zeros(1, 2, 4, 4, 3, dtype=torch.uint8), (6, 3, 3, 3, 3), [3], "chunks"),
    ],
)
def test_refuses_what_does_not_fit(frames, weight, chunks, match):
    with pytest.raises(ValueError, match=match):
        frame_conv(frames, torch.zeros(weight), torch.zeros(6), chunks)


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_compiles_for_every_chip(capability, dtype, compile_launches):
    frames = torch.empty(2, 16, 64, 64, 3, dtype=torch.uint8, device="meta")
    weight = torch.empty(128, 3, 3, 3, 3, dtype=dtype, device="meta")
    bias = torch.empty(128, dtype=dtype, device="meta")

    def call():
        frame_conv(frames, weight, bias, [8, 8])

    assert compile_launches(call, [module, shifted_conv], capability) == ["_forward", "_pack"]
