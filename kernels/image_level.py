"""The image encoder's first level, from uint8 images to its activation, without its map of full size in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from genreward_fast.kernels.column_sums import PARTIALS, column_sums
from genreward_fast.kernels.image_blocks import image_blocks
from genreward_fast.kernels.phase_norm_silu import phase_norm_silu_reference, unshuffle
from genreward_fast.kernels.triton_support import HAS_TRITON, padded, runs_triton

if HAS_TRITON:
    from genreward_fast.kernels.image_level_kernels import _backward, _forward, _sum_weights, _weights

MAX_CHANNELS = 32
"""With more, the gradient's sums (128 by four times the channels) fill more registers than there are."""
MAX_PROGRAMS = 512
"""Of the forward pass: each reads all weights first, so that few are best that fill the chip evenly."""
STAGES = 1, 2
"""Tiles on their way at a time, forward and backward: there, few programs fit a multiprocessor to hide the waiting."""
BLOCK = 512
PARTS = 128
"""Shares of the gradient that `sum_weights` adds up at once."""


def image_level_reference(
    image: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    """What `image_level` computes, in plain PyTorch, with gradients."""
    pixels = image.reshape(-1, *image.shape[-3:]).permute(0, 3, 1, 2).to(dtype) / 255 - 0.5
    x = functional.conv2d(pixels, weight.to(dtype), padding=2).permute(0, 2, 3, 1).contiguous()
    return phase_norm_silu_reference(unshuffle(x), bias, scale, eps, "pool_blocks")


def image_level(image: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """silu(norm(maximum over 2 x 2 pixels of convolution + bias)), with gradients by all but the image.

    The convolution is 5 x 5 with padding 2 over x / 255 - 0.5; norm(v) = v / sqrt(mean(v²) + eps) · scale over
    channels. Pixels, weights, the convolution and its sum with the bias are rounded to `dtype`, and so is the gradient
    by that sum; all else is in float32 inside. The gradient of the maximum is split evenly among pixels that tie.

    Args:
        image: (..., H, W, 3) uint8, H and W multiples of 4; with two leading axes, their strides may be any.
        weight: (C, 3, 5, 5) float32, C at most `MAX_CHANNELS`.
        bias, scale: (C,) float32.
        eps: added to the mean square.
        dtype: what is computed in, and of the result; float32, bfloat16 or float16.

    Returns:
        (N, H / 4, W / 4, 4 C): blocks of 2 x 2 of the level's H / 2 x W / 2 pixels, channels (row in the block, column
        in the block, C).

    Raises:
        ValueError: H or W is no multiple of 4, or C is more than `MAX_CHANNELS`.
    """
    height, width = image.shape[-3:-1]
    if height % 4 or width % 4:
        raise ValueError(f"an image of {height} x {width} pixels is no blocks of 4 x 4")
    if len(weight) > MAX_CHANNELS:
        raise ValueError(f"{len(weight)} channels are more than {MAX_CHANNELS}")
    if not runs_triton(image, weight, bias, scale) or image.numel() == 0:
        return image_level_reference(image, weight, bias, scale, eps, dtype)
    return _ImageLevel.apply(image, weight, bias, scale, eps, dtype)


def window_weights(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """(C, 3, 5, 5) float32 to (128, phases · padded C) in `dtype`, with which windows of the image are multiplied; see
    `image_level_kernels`."""
    size = _width(weight)
    out = torch.empty((128, 4 * size), dtype=dtype, device=weight.device)
    _weights[(-(-out.numel() // BLOCK),)](weight.contiguous(), out, len(weight), BLOCK=BLOCK, SIZE=size, num_warps=4)
    return out


def sum_weights(partial: Tensor, channels: int) -> Tensor:
    """The gradient (C, 3, 5, 5) float32 by weight, given shares (programs, 108, phases · padded C) float32 of that by
    the first rows of `window_weights`."""
    by_weight = torch.empty((channels, 3, 5, 5), dtype=torch.float32, device=partial.device)
    size = partial.shape[-1] // 4
    _sum_weights[(75,)](partial, by_weight, len(partial), channels, PARTS=PARTS, SIZE=size, num_warps=4)
    return by_weight


def _width(weight: Tensor) -> int:
    """Channels of a phase in the kernels' products."""
    return max(16, padded(len(weight)))


def _launch(image: Tensor, size: int, dtype: torch.dtype, programs: int) -> tuple[int, tuple[int, int], dict[str, Any]]:
    """How many programs there are, at most `programs`; tiles of rows, of all and of one; the kernels' options."""
    # Two programs of the gradient fit a multiprocessor's registers. Without tensor cores its sums need more threads.
    rows, warps = (16, 16) if dtype == torch.float32 else (64, 4)
    height, width = image.shape[-3] // 2, image.shape[-2] // 2
    tiles = image.shape[:-3].numel() * (height // 2) * -(-2 * width // rows)
    per_program = -(-tiles // programs)
    options = {"HEIGHT": height, "WIDTH": width, "ROWS": rows, "SIZE": size, "num_warps": warps}
    return -(-tiles // per_program), (tiles, per_program), options


class _ImageLevel(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, eps: float, dtype: torch.dtype
    ) -> Tensor:
        n, height, width = image.shape[:-3].numel(), image.shape[-3] // 4, image.shape[-2] // 4
        inputs = image_blocks(image, dtype, 12, 1), window_weights(weight, dtype), bias, scale
        ctx.save_for_backward(*inputs)
        ctx.launch, ctx.eps = _launch(image, _width(weight), dtype, PARTIALS), eps
        out = torch.empty((n, height, width, 4 * len(weight)), dtype=dtype, device=image.device)
        programs, (tiles, per_program), options = _launch(image, _width(weight), dtype, MAX_PROGRAMS)
        _forward[(programs,)](*inputs, out, tiles, len(weight), eps, per_program, **options, STAGES=STAGES[0])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        blocks, weights, bias, scale = ctx.saved_tensors
        programs, (tiles, per_program), options = ctx.launch
        channels = len(bias)
        by_weights = torch.empty((programs, 108, weights.shape[1]), dtype=torch.float32, device=grad.device)
        by_others = torch.empty((programs, 2, channels), dtype=torch.float32, device=grad.device)
        _backward[(programs,)](
            grad.contiguous(), blocks, weights, bias, scale, by_weights, by_others,
            tiles, channels, ctx.eps, per_program, **options, STAGES=STAGES[1],
        )  # fmt: skip
        return None, sum_weights(by_weights, channels), *column_sums(by_others).unbind(), None, None
