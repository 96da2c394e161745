"""Choosing and squaring the frames of a video."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from genreward_fast.errors import UserError


def uniform_indices(total: int, count: int) -> list[int]:
    """`count` indices spread evenly over `total` frames, first and last among them: linspace(0, total-1), rounded.

    Indices repeat where `count` exceeds `total`.
    """
    return torch.linspace(0, total - 1, count, dtype=torch.float64).round().long().tolist()


def to_square(frames: Tensor, size: int) -> Tensor:
    """Crops the centre square (the whole shorter side) and resizes it, antialiased bilinear.

    Args:
        frames: (..., H, W, 3) uint8.
        size: side of the result in pixels.

    Returns:
        (..., size, size, 3) uint8, contiguous.

    Raises:
        UserError: size is below 1.
    """
    if size < 1:
        raise UserError(f"frame size {size}: must be at least 1")
    height, width = frames.shape[-3:-1]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = frames[..., top : top + side, left : left + side, :]
    if side != size:
        pixels = square.reshape(-1, side, side, 3).permute(0, 3, 1, 2)
        pixels = F.resize(pixels, [size, size], F.InterpolationMode.BILINEAR, antialias=True)
        square = pixels.permute(0, 2, 3, 1).reshape(*frames.shape[:-3], size, size, 3)
    return square.contiguous()
