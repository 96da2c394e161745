from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from transformers import DINOv3ViTImageProcessor

from genreward_fast.kernels import frames as module
from genreward_fast.kernels.frames import FrameFormat, frames, frames_reference
from genreward_fast.kernels.triton_support import references_only

CLIP = PreprocessCfg()
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Height and width of frames, side of the result.
LIBRARY_SIZES = [
    *((*frame, 224) for frame in [(64, 64), (224, 224), (256, 256), (480, 480), (480, 720), (3, 5), (1, 1)]),
    *((*frame, 32) for frame in [(32, 32), (31, 33), (201, 130), (20, 33), (7, 100)]),
]
# The same for Triton's interpreter, which is slow: more than one block down and across, fewer, and a shape unchanged.
SIZES = [((5, 7), (11, 45)), ((21, 14), (9, 6)), ((9, 17), (9, 17)), ((27, 20), (10, 10)), ((1, 1), (3, 2))]
FORMATS = {
    "float": {},
    "cubic": {"interpolation": "bicubic"},
    "bytes": {"bytes_between": True},
    "pillow": {"interpolation": "bicubic", "bytes_between": True},
}
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}


def dino(height, width, **options):
    return FrameFormat((height, width), *IMAGENET, **options)


def clip(side):
    return FrameFormat((side, side), CLIP.mean, CLIP.std, "bicubic", crop=True, bytes_between=True)


def noise(count, height, width, generator, device="cpu"):
    return torch.randint(0, 256, (count, height, width, 3), generator=generator, dtype=torch.uint8).to(device)


def pictures(height, width, generator):
    """Noise, noise of black and white, a slope of colours, and edges: (4, height, width, 3)."""
    drawn = noise(2, height, width, generator)
    y, x = torch.linspace(0, 1, height)[:, None, None], torch.linspace(0, 1, width)[None, :, None]
    slope = (255 * (x + y) / 2 * torch.tensor([1.0, 0.5, 0.9])).to(torch.uint8)
    edges = ((torch.arange(height)[:, None] // 5 + torch.arange(width) // 7) % 2 * 255).to(torch.uint8)
    return torch.stack([drawn[0], drawn[1] // 128 * 255, slope, edges[..., None].expand(-1, -1, 3)])


def of_open_clip(image, side, **options):
    transform = image_transform_v2(PreprocessCfg(size=side, **options), is_train=False)
    return torch.stack([transform(Image.fromarray(picture.numpy())) for picture in image])


def of_transformers(image, side):
    processor = DINOv3ViTImageProcessor(size={"height": side, "width": side})
    planes = list(image.permute(0, 3, 1, 2))
    return processor(images=planes, return_tensors="pt", input_data_format="channels_first")["pixel_values"]


@pytest.mark.parametrize(("height", "width", "side"), LIBRARY_SIZES)
def test_reference_is_open_clip_s_transform(height, width, side, fresh_generator):
    image = pictures(height, width, fresh_generator)
    assert torch.equal(frames_reference(image, clip(side), torch.float32), of_open_clip(image, side))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_reference_is_open_clip_s_transform_that_squashes(interpolation, fresh_generator):
    image = pictures(40, 90, fresh_generator)
    how = FrameFormat((32, 48), CLIP.mean, CLIP.std, interpolation, bytes_between=True)
    expected = of_open_clip(image, (32, 48), resize_mode="squash", interpolation=interpolation)
    assert torch.equal(frames_reference(image, how, torch.float32), expected)


@pytest.mark.parametrize(("height", "width", "side"), LIBRARY_SIZES)
def test_reference_is_transformers_processor(height, width, side, fresh_generator, relative_rms):
    image = pictures(height, width, fresh_generator)
    found = frames_reference(image, dino(side, side), torch.float32)
    expected = of_transformers(image, side)
    assert relative_rms(found, expected) < 1e-6
    assert ((found - expected) * torch.tensor(IMAGENET[1]).view(3, 1, 1)).abs().max() < 1e-3 / 255


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_reference_is_pillow_at_any_size(interpolation, fresh_generator):
    for _ in range(20):
        height, width, *size = torch.randint(1, 120, (4,), generator=fresh_generator).tolist()
        if 0 < height - size[0] > 2 * (width - size[1]):
            size[1] = width  # Pillow 13 would begin with rows, older ones with columns
        how = FrameFormat(tuple(size), (0.0,) * 3, (1.0,) * 3, interpolation, bytes_between=True)
        image = pictures(height, width, fresh_generator)
        found = (frames_reference(image, how, torch.float64) * 255).round().permute(0, 2, 3, 1).numpy()
        for ours, picture in zip(found, image):
            theirs = Image.fromarray(picture.numpy()).resize(size[::-1], Image.Resampling[interpolation.upper()])
            assert np.array_equal(ours, np.asarray(theirs)), (height, width, size)


@functools.cache
def case(sizes, name):
    (height, width), size = sizes
    crop = size[0] == size[1]
    return height, width, dino(*size, crop=crop, **FORMATS[name])


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", FORMATS)
def test_on_triton_agrees_with_the_reference(
    sizes, name, triton_device, poisoned, fresh_generator, relative_rms, monkeypatch
):
    monkeypatch.setattr(module, "COLUMNS", 32)  # more blocks of the few columns that the interpreter has time for
    height, width, how = case(sizes, name)
    image = noise(2, height, width, fresh_generator, triton_device)
    image[0] = image[0] // 128 * 255
    for dtype, limit in LIMITS.items():
        found, expected = frames(image, how, dtype), frames_reference(image.cpu(), how, dtype)
        assert found.dtype == dtype
        assert found.shape == expected.shape == (2, 3, *how.size)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert relative_rms(found.cpu(), expected) < limit
        if how.bytes_between and dtype != torch.bfloat16:  # which the interpreter rounds toward zero
            assert torch.equal(found.cpu(), expected)


def test_on_triton_frames_of_the_size_wanted_are_only_normalised(triton_device, poisoned):
    image = torch.arange(256, dtype=torch.uint8, device=triton_device).repeat(3).view(3, 16, 16).permute(1, 2, 0)[None]
    expected = torch.arange(256).view(16, 16).float() / 255
    for how in (dino(16, 16), clip(16)):
        for colour, (mean, std) in enumerate(zip(how.mean, how.std)):
            found = frames(image, how, torch.float32)[0, colour]
            assert torch.equal(found.cpu(), (expected - torch.tensor(mean)) / torch.tensor(std))


@pytest.mark.parametrize("how", [dino(4, 9), clip(6)])
def test_on_triton_gathers(how, triton_device, poisoned, fresh_generator):
    image = noise(6, 7, 5, fresh_generator, triton_device).view(2, 3, 7, 5, 3)
    index = torch.tensor([5, 0, 0, 3], device=triton_device)
    together = frames(image, how, torch.float32)
    assert torch.equal(frames(image, how, torch.float32, index), together[index])
    assert torch.equal(frames(image.transpose(0, 1), how, torch.float32, index[:1]), together[5:])
    assert torch.equal(frames(image.transpose(0, 1), how, torch.float32, index[3:]), together[4:5])
    assert frames(image, how, torch.float32, index[:0]).shape == (0, 3, *how.size)


def test_on_triton_takes_a_part_of_a_batch(triton_device, fresh_generator):
    image = noise(15, 6, 4, fresh_generator, triton_device).view(3, 5, 6, 4, 3)
    parts = (image[:, 1:], image[1:, 2:4], image.transpose(0, 1), image[:, 1], image[0, 0], image[::2, ::3])
    for part in (*parts, image.transpose(2, 3)[..., :3, :], image[..., 1:, :, :], image.flip(-1)):
        found = frames(part, dino(5, 7), torch.float32)
        assert torch.equal(found, frames(part.clone(), dino(5, 7), torch.float32))
        with references_only():
            expected = frames(part, dino(5, 7), torch.float32)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_on_triton_without_frames(triton_device):
    nothing = torch.zeros(0, 4, 6, 3, dtype=torch.uint8, device=triton_device)
    for how in (dino(3, 5), clip(2)):
        assert frames(nothing, how, torch.bfloat16).shape == (0, 3, *how.size)
        assert frames_reference(nothing, how, torch.bfloat16).shape == (0, 3, *how.size)


def test_tables_stay_inside_the_frame():
    """What the kernel reads without looking: a table that led outside would go unseen where memory goes on."""
    for height, width, side in LIBRARY_SIZES:
        for how in (dino(side, side), dino(side, side, interpolation="bicubic"), clip(side)):
            tables = module._tables(how, height, width, torch.device("cpu"))
            for taps, size in ((tables.rows, height), (tables.columns, width)):
                assert len(taps.start) == side
                assert taps.start.min() >= 0
                assert taps.start.max() + len(taps.weight) <= size
                assert (taps.weight.double().sum(0) / (1 << 22 if how.bytes_between else 1) - 1).abs().max() < 1e-5
            assert tables.spans.dtype == torch.int32
            needed = tables.rows.start[:, None] + torch.arange(len(tables.rows.weight))
            for rows, (first, end) in zip(needed.split(module.ROWS), tables.spans.tolist()):
                assert (first, end) == (rows.min(), rows.max() + 1)


@pytest.mark.parametrize(
    "bad", [torch.zeros(2, 4, 4, 3), torch.zeros(4, 4, 4, dtype=torch.uint8), torch.zeros(0, 4, 3, dtype=torch.uint8)]
)
def test_refuses_what_are_no_frames(bad):
    with pytest.raises(ValueError, match="uint8"):
        frames(bad, dino(2, 2), torch.float32)


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        ((4, 4), {"interpolation": "nearest"}, "nearest"),
        ((4, 5), {"crop": True}, "square"),
        ((0, 4), {}, "positive"),
    ],
)
def test_refuses_formats_that_do_not_exist(size, options, message):
    with pytest.raises(ValueError, match=message):
        dino(*size, **options)


@pytest.mark.gpu
@pytest.mark.parametrize(("height", "width", "side"), LIBRARY_SIZES)
def test_on_gpu_is_the_libraries(height, width, side, fresh_generator, relative_rms):
    image = pictures(height, width, fresh_generator)
    assert torch.equal(frames(image.cuda(), clip(side), torch.float32).cpu(), of_open_clip(image, side))
    found = frames(image.cuda(), dino(side, side), torch.float32).cpu()
    # Some versions of PyTorch round a filter's places to float32, 1e-5 of a pixel away.
    assert relative_rms(found, of_transformers(image, side)) < 1e-4


@pytest.mark.gpu
def test_on_gpu_rounds_once():
    image = torch.arange(256, dtype=torch.uint8).repeat(3).view(3, 16, 16).permute(1, 2, 0)[None]
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(frames(image.cuda(), clip(16), dtype).cpu(), frames_reference(image, clip(16), dtype))


@pytest.mark.gpu
def test_on_gpu_can_be_captured(fresh_generator):
    image = noise(5, 50, 40, fresh_generator, "cuda")
    index = torch.tensor([4, 1], device="cuda")
    frames(image, clip(24), torch.bfloat16, index)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = frames(image, clip(24), torch.bfloat16, index)
    image.copy_(noise(5, 50, 40, fresh_generator))
    index.fill_(2)
    graph.replay()
    assert torch.equal(found, frames(image, clip(24), torch.bfloat16, index))


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize(("weight", "bits", "dtype"), [("i32", module._BITS, "fp32"), ("fp32", 0, "bf16")])
@pytest.mark.parametrize("gather", [False, True])
def test_compiles_for_every_chip(capability, weight, bits, dtype, gather, compile_for):
    pointers = {"image": "u8", "index": "i64" if gather else "u8", "out": dtype, "colour": "fp32", "spans": "i32"}
    pointers |= {"row_start": "i32", "row_weight": weight, "column_start": "i32", "column_weight": weight}
    constants = {"GATHER": gather, "BITS": bits, "ROWS": module.ROWS, "COLUMNS": module.COLUMNS}
    if not gather:  # as frames that have the size already are launched
        constants |= {"row_taps": 1, "column_taps": 1, "per": 1}
    numbers = {"height", "width", "pitch", "row_taps", "column_taps", "per", "outer", "inner"} - constants.keys()
    signature = {name: f"*{kind}" for name, kind in pointers.items()} | dict.fromkeys(numbers, "i32")
    compile_for(module._forward, capability, signature, constants, num_warps=module.WARPS, aligned=("width",))
