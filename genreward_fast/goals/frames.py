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
    return to_size(frames, size, size)


def to_size(frames: Tensor, height: int, width: int) -> Tensor:
    """Crops the largest centred part of the wanted proportions and resizes it, antialiased bilinear.

    Args:
        frames: (..., H, W, 3) uint8.
        height, width: of the result in pixels.

    Returns:
        (..., height, width, 3) uint8, contiguous.

    Raises:
        UserError: height or width is below 1.
    """
    if min(height, width) < 1:
        raise UserError(f"frame size {min(height, width)}: must be at least 1")
    rows, columns = frames.shape[-3:-1]
    inner_rows = min(rows, max(1, round(columns * height / width)))
    inner_columns = min(columns, max(1, round(rows * width / height)))
    top, left = (rows - inner_rows) // 2, (columns - inner_columns) // 2
    part = frames[..., top : top + inner_rows, left : left + inner_columns, :]
    if (inner_rows, inner_columns) != (height, width):
        pixels = part.reshape(-1, inner_rows, inner_columns, 3).permute(0, 3, 1, 2)
        pixels = F.resize(pixels, [height, width], F.InterpolationMode.BILINEAR, antialias=True)
        part = pixels.permute(0, 2, 3, 1).reshape(*frames.shape[:-3], height, width, 3)
    return part.contiguous()
