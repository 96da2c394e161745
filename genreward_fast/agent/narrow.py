"""RMS norm and SiLU over few channels, and the image's error, as a CPU does them fast: float32, few long passes.

PyTorch's own operations go over the last axis in loops, which for 8 or 16 channels cost more than what they compute. So
whole images are single rows here, and means over channels are products with a constant vector.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_LONG = 256  # values in a row, from which the loop over rows costs little


def norm_silu(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """silu(x / sqrt(mean(x²) + eps) · scale) over the last axis.

    Args:
        x: (..., C) float32.
        scale: (C,) float32.
    """
    return _NormSiLU.apply(x, scale, eps)


def image_error(x: Tensor, image: Tensor) -> Tensor:
    """The squared error of sigmoid(x) with the image / 255, summed over each image: (N,) float32.

    Args:
        x: (N, 12, H, W) float32, 2 x 2 blocks of pixels, the channels (row in the block, column, colour).
        image: (..., 2 H, 2 W, 3) uint8, N images.
    """
    return _ImageError.apply(x, image)


def _normed(x: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """1 / root mean square of each pixel, (pixels, 1); x times that, and the scale for each value of a long row."""
    channels = len(scale)
    mean = x.new_full((channels,), 1 / channels)
    rate = torch.mv(x.square().view(-1, channels), mean).add_(eps).rsqrt_().unsqueeze(1)
    return rate, (x.view(-1, channels) * rate).view(x.shape), scale.repeat(x.shape[1] // channels)


class _NormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, eps: float) -> Tensor:
        channels = len(scale)
        rows = x.numel() // channels
        # As many pixels to a row as make it long and divide their number.
        pixels = 1
        while pixels * channels < _LONG and rows % (2 * pixels) == 0:
            pixels *= 2
        long = x.reshape(-1, pixels * channels)
        ctx.save_for_backward(long, scale)
        ctx.eps = eps
        _, unit, repeated = _normed(long, scale, eps)
        return torch.nn.functional.silu(unit.mul_(repeated), inplace=True).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, scale = ctx.saved_tensors
        channels = len(scale)
        rate, unit, repeated = _normed(x, scale, ctx.eps)
        by_normed = torch.ops.aten.silu_backward(grad.reshape(x.shape), unit * repeated)
        along = by_normed * unit
        by_scale = along.sum(0).view(-1, channels).sum(0)
        # The mean over channels of (gradient by unit) · unit.
        along = torch.mv(along.view(-1, channels), scale / channels).unsqueeze(1)
        by_unit = by_normed.mul_(repeated).view(-1, channels)
        by_x = by_unit.addcmul_(unit.view(-1, channels), along, value=-1).mul_(rate)
        return by_x.view(grad.shape), by_scale, None


class _ImageError(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, image: Tensor) -> Tensor:
        count, _, height, width = x.shape
        # Six bytes, two neighbouring pixels, keep their order: they move as three numbers.
        pairs = image.reshape(count, height, 2, width, 6).view(torch.int16).transpose(2, 3).contiguous()
        target = pairs.view(torch.uint8).view(count, -1).float().div_(255)
        pixels = x.permute(0, 2, 3, 1).reshape(count, -1).sigmoid()
        error = torch.sub(pixels, target, out=target)
        ctx.save_for_backward(pixels, error)
        ctx.shape = x.shape
        return torch.linalg.vecdot(error, error)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        pixels, error = ctx.saved_tensors
        count, channels, height, width = ctx.shape
        by_x = torch.ops.aten.sigmoid_backward(error * (2 * grad).unsqueeze(1), pixels)
        return by_x.view(count, height, width, channels).permute(0, 3, 1, 2), None
