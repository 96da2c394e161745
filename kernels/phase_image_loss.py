"""The image loss from the phases of the decoder's last convolution: sigmoid, squared error, sum; and the gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from genreward_fast.kernels.image_blocks import strides
from genreward_fast.kernels.phase_norm_silu import shuffle
from genreward_fast.kernels.triton_support import HAS_TRITON, padded, runs_triton, wide

TILE = 1024


def phase_pixels(x: Tensor, bias: Tensor, side: int) -> Tensor:
    """sigmoid(x + bias) as pixels: (N, H, W, at least 3 side²) to (N, side H, side W, 3), rounded to x's dtype."""
    return (shuffle(x[..., : 3 * side**2], side) + bias.to(x.dtype)).sigmoid()


def phase_image_loss_reference(x: Tensor, bias: Tensor, image: Tensor, side: int) -> Tensor:
    """What `phase_image_loss` computes, in plain PyTorch, with gradients."""
    image = image.reshape(-1, *image.shape[-3:])
    pixels = wide(phase_pixels(x, bias, side))
    return (pixels - image.to(pixels.dtype) / 255).square().sum((-3, -2, -1))


def phase_image_loss(x: Tensor, bias: Tensor, image: Tensor, side: int) -> Tensor:
    """The squared error of sigmoid(x + bias) with the image / 255, summed over each image, with gradients.

    Sum and sigmoid are rounded to x's dtype; the error is in float32.

    Args:
        x: (N, H, W, C) of any floating dtype, the image in blocks of side x side pixels: channels (row in the block,
            column in the block, colour), then any that count for nothing.
        bias: (3,) float32.
        image: (..., side H, side W, 3) uint8, N images.
        side: of a block.

    Returns:
        (N,) float32.
    """
    if not runs_triton(x, bias, image) or x.numel() == 0:
        return phase_image_loss_reference(x, bias, image, side)
    return _PhaseImageLoss.apply(x, bias, image, side)


def _launch(x: Tensor, side: int) -> tuple[tuple[int, ...], dict[str, int]]:
    """The kernels' sizes and options."""
    size = padded(x.shape[-1])
    options = {"SIDE": side, "ROWS": max(1, TILE // size), "SIZE": size, "num_warps": 4}
    return (x.shape[1] * x.shape[2], x.shape[2], x.shape[3]), options


class _PhaseImageLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, image: Tensor, side: int) -> Tensor:
        x = x.contiguous()
        image, *where = strides(image)
        ctx.save_for_backward(x, bias, image)
        ctx.options = where, side
        loss = torch.empty(len(x), dtype=torch.float32, device=x.device)
        shape, options = _launch(x, side)
        _forward[(len(x),)](x, bias, image, loss, *shape, *where, **options)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, bias, image = ctx.saved_tensors
        where, side = ctx.options
        by_x = torch.empty_like(x)
        shape, options = _launch(x, side)
        partial = torch.empty((len(x), side**2, 3), dtype=torch.float32, device=x.device)
        _backward[(len(x),)](grad.contiguous(), x, bias, image, by_x, partial, *shape, *where, **options)
        return by_x, partial.sum((0, 1)), None, None


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _pixels(x, bias, image, row, column, real, n, rows, width, columns, per, outer, inner, SIDE: tl.constexpr):
        """Where the values of some blocks of image n lie in x, which are pixels, and these and the image's."""
        kind = x.dtype.element_ty
        inside = (row < rows)[:, None] & real[None, :]
        at = (n * rows + row)[:, None] * columns + column[None, :]
        shift = tl.load(bias + column % 3, mask=real, other=0.0).to(kind).to(tl.float32)
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + shift[None, :]
        pixel = tl.sigmoid(value.to(kind).to(tl.float32)).to(kind).to(tl.float32)
        start = ((row // width) * SIDE * width + row % width) * (SIDE * 3)
        phase = column // 3
        offset = (phase // SIDE * (SIDE * width) + phase % SIDE) * 3 + column % 3
        image += n // per * outer + n % per * inner
        target = tl.load(image + start[:, None] + offset[None, :], mask=inside, other=0).to(tl.float32)
        return at, inside, pixel, target / 255.0

    @triton.jit
    def _forward(
        x,
        bias,
        image,
        loss,
        rows,
        width,
        columns,
        per,
        outer,
        inner,
        SIDE: tl.constexpr,
        ROWS: tl.constexpr,
        SIZE: tl.constexpr,
    ):
        """Program n: image n, ROWS blocks at a time."""
        n = tl.program_id(0).to(tl.int64)
        column = tl.arange(0, SIZE)
        real = column < 3 * SIDE * SIDE
        total = tl.zeros([ROWS, SIZE], tl.float32)
        for first in range(0, rows, ROWS):
            row = first + tl.arange(0, ROWS)
            _, inside, pixel, target = _pixels(
                x, bias, image, row, column, real, n, rows, width, columns, per, outer, inner, SIDE
            )
            error = tl.where(inside, pixel - target, 0.0)
            total += error * error
        tl.store(loss + n, tl.sum(tl.sum(total, 1), 0))

    @triton.jit
    def _backward(
        grad,
        x,
        bias,
        image,
        by_x,
        partial,
        rows,
        width,
        columns,
        per,
        outer,
        inner,
        SIDE: tl.constexpr,
        ROWS: tl.constexpr,
        SIZE: tl.constexpr,
    ):
        """Program n: image n; its share of the gradient of the bias goes to partial[n]."""
        n = tl.program_id(0).to(tl.int64)
        column = tl.arange(0, SIZE)
        real = column < 3 * SIDE * SIDE
        total = tl.zeros([ROWS, SIZE], tl.float32)
        kind = by_x.dtype.element_ty
        slope = 2.0 * tl.load(grad + n)
        for first in range(0, rows, ROWS):
            row = first + tl.arange(0, ROWS)
            at, inside, pixel, target = _pixels(
                x, bias, image, row, column, real, n, rows, width, columns, per, outer, inner, SIDE
            )
            by_pixel = (slope * (pixel - target)).to(kind).to(tl.float32)
            by_value = tl.where(inside, by_pixel * (1.0 - pixel) * pixel, 0.0)
            total += by_value
            stored = (row < rows)[:, None] & (column < columns)[None, :]
            tl.store(by_x + at, by_value.to(kind), mask=stored)
        tl.store(partial + n * (3 * SIDE * SIDE) + column, tl.sum(total, 0), mask=real)
