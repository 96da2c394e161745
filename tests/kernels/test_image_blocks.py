from __future__ import annotations

import pytest
import torch

from genreward_fast.kernels import image_blocks as module
from genreward_fast.kernels.image_blocks import image_blocks, image_blocks_reference
from genreward_fast.kernels.triton_support import padded

# Leading axes, H, W.
SHAPES = [((), 4, 6), ((3,), 2, 2), ((2,), 32, 26), ((2, 3), 10, 4), ((2, 1, 2), 4, 4)]
LIMITS = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 4e-3}  # Triton's interpreter rounds bfloat16 down


def images(shape, generator, device="cpu"):
    lead, height, width = shape
    return torch.randint(0, 256, (*lead, height, width, 3), generator=generator, dtype=torch.uint8).to(device)


@pytest.mark.parametrize("shape", SHAPES)
def test_reference_places_pixels(shape, fresh_generator):
    image = images(shape, fresh_generator)
    found = image_blocks_reference(image, torch.float64, 16)
    flat = image.reshape(-1, *shape[1:], 3)
    assert found.shape == (len(flat), shape[1] // 2, shape[2] // 2, 16)
    framed = image_blocks_reference(image, torch.float64, 12, 2)
    assert torch.equal(framed[:, 2:-2, 2:-2], found[..., :12])
    assert framed.count_nonzero() == found.count_nonzero()
    for phase in range(4):
        expected = flat[:, phase // 2 :: 2, phase % 2 :: 2].double() / 255 - 0.5
        assert torch.equal(found[..., 3 * phase : 3 * phase + 3], expected)
    assert not found[..., 12:].any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize(("columns", "border"), [(12, 1), (32, 0), (13, 2)])
def test_on_triton_agrees_with_reference(
    shape, dtype, columns, border, triton_device, poisoned, fresh_generator, relative_rms
):
    image = images(shape, fresh_generator, triton_device)
    found = image_blocks(image, dtype, columns, border)
    expected = image_blocks_reference(image, dtype, columns, border)
    assert found.dtype == dtype
    assert found.shape == expected.shape
    assert found.is_contiguous()
    assert relative_rms(found.cpu(), expected.cpu()) < LIMITS[dtype]


def test_on_triton_takes_a_part_of_a_batch(triton_device, fresh_generator):
    image = images(((3, 5), 4, 6), fresh_generator, triton_device)
    for part in (image[:, 1:], image[1:, 2:4], image.transpose(0, 1), image[:, 1], image.transpose(2, 3)[..., :4, :]):
        assert torch.equal(image_blocks(part, torch.float32, 16), image_blocks(part.clone(), torch.float32, 16))


def test_on_triton_without_images(triton_device):
    assert (
        image_blocks(torch.zeros(0, 4, 4, 3, dtype=torch.uint8, device=triton_device), torch.float32, 16).numel() == 0
    )


@pytest.mark.gpu
def test_on_gpu_rounds_as_the_reference():
    image = torch.arange(256, dtype=torch.uint8, device="cuda").repeat(3).view(1, 16, 16, 3)
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(image_blocks(image, dtype, 32), image_blocks_reference(image, dtype, 32))


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize(("dtype", "columns", "border"), [("bf16", 32, 0), ("bf16", 12, 1), ("fp32", 12, 1)])
def test_compiles_for_every_chip(capability, dtype, columns, border, compile_for):
    signature = {"image": "*u8", "out": f"*{dtype}"} | dict.fromkeys(("pieces", "per", "outer", "inner"), "i32")
    constants = {"HEIGHT": 32, "WIDTH": 32, "BORDER": border, "COLUMNS": columns, "SIZE": padded(columns)}
    compile_for(module._forward, capability, signature, constants | {"ROWS": module.ROWS}, num_warps=4)
