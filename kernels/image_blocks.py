"""From uint8 images to what the first convolution reads: centred values, in blocks of 2 x 2 pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from genreward_fast.kernels.phase_norm_silu import unshuffle
from genreward_fast.kernels.triton_support import HAS_TRITON, padded, runs_triton

ROWS = 128


def strides(image: Tensor) -> tuple[Tensor, int, int, int]:
    """The image, copied only if it must be, and M, a and b: its nth image begins at n // M * a + n % M * b.

    Args:
        image: (..., H, W, 3); with two leading axes, their strides may be any.
    """
    size = 3 * image.shape[-2] * image.shape[-3]
    if image.stride()[-3:] != (3 * image.shape[-2], 3, 1) or image.ndim > 5:
        image = image.contiguous()
    if image.ndim == 5:
        return image, image.shape[1], image.stride(0), image.stride(1)
    return image, 1, image.stride(0) if image.ndim == 4 else size, 0


def image_blocks_reference(image: Tensor, dtype: torch.dtype, columns: int, border: int = 0) -> Tensor:
    """What `image_blocks` computes, in plain PyTorch."""
    pixels = image.reshape(-1, *image.shape[-3:]).to(dtype) / 255 - 0.5
    return functional.pad(unshuffle(pixels), (0, columns - 12, border, border, border, border))


def image_blocks(image: Tensor, dtype: torch.dtype, columns: int, border: int = 0) -> Tensor:
    """x / 255 - 0.5 of images in blocks of 2 x 2 pixels, each operation rounded to `dtype`. Without gradients.

    Args:
        image: (..., H, W, 3) uint8, H and W even.
        dtype: of the result.
        columns: channels of the result, at least 12.
        border: blocks of zeros around each image.

    Returns:
        (N, H / 2 + 2 border, W / 2 + 2 border, columns): channels (row in the block, column in the block, colour), then
        zeros.
    """
    if not runs_triton(image):
        return image_blocks_reference(image, dtype, columns, border)
    height, width = image.shape[-3] // 2, image.shape[-2] // 2
    images = image.shape[:-3].numel()
    out = torch.empty((images, height + 2 * border, width + 2 * border, columns), dtype=dtype, device=image.device)
    image, *where = strides(image)
    if images:
        pieces = -(-out[0, ..., 0].numel() // ROWS)
        options = {"HEIGHT": height, "WIDTH": width, "BORDER": border, "COLUMNS": columns, "SIZE": padded(columns)}
        _forward[(images * pieces,)](image, out, pieces, *where, **options, ROWS=ROWS, num_warps=4)
    return out


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _centred(at, inside, kind: tl.constexpr):
        """x / 255 - 0.5, and 0 outside."""
        value = tl.load(at, mask=inside, other=0).to(tl.float32)
        # One step of Newton's makes the product the correctly rounded quotient for all 256 values, sooner than div_rn.
        quotient = value * (1 / 255)
        quotient = tl.fma(tl.fma(quotient, -255.0, value), 1 / 255, quotient)
        return tl.where(inside, quotient.to(kind).to(tl.float32) - 0.5, 0.0).to(kind)

    @triton.jit
    def _forward(
        image,
        out,
        pieces,
        per,
        outer,
        inner,
        HEIGHT: tl.constexpr,
        WIDTH: tl.constexpr,
        BORDER: tl.constexpr,
        COLUMNS: tl.constexpr,
        SIZE: tl.constexpr,
        ROWS: tl.constexpr,
    ):
        """ROWS blocks of one image, the border's among them."""
        n = tl.program_id(0) // pieces
        row = tl.program_id(0) % pieces * ROWS + tl.arange(0, ROWS)
        column = tl.arange(0, SIZE)
        wide: tl.constexpr = WIDTH + 2 * BORDER
        rows: tl.constexpr = (HEIGHT + 2 * BORDER) * wide
        line, over = row // wide - BORDER, row % wide - BORDER
        phase = column // 3
        offset = (phase // 2 * (2 * WIDTH) + phase % 2) * 3 + column % 3
        real = (line >= 0) & (line < HEIGHT) & (over >= 0) & (over < WIDTH)
        inside = real[:, None] & (column < 12)[None, :]
        image += (n // per).to(tl.int64) * outer + (n % per).to(tl.int64) * inner
        at = (line * (2 * WIDTH) + over) * 6
        value = _centred(image + at[:, None] + offset[None, :], inside, out.dtype.element_ty)
        out += n.to(tl.int64) * (rows * COLUMNS)
        stored = (row < rows)[:, None] & (column < COLUMNS)[None, :]
        tl.store(out + row[:, None] * COLUMNS + column[None, :], value, mask=stored)
