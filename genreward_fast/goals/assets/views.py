"""Random views of frames, drawn and computed on the device that holds them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def crops(pixels: Tensor, size: int, sides: tuple[float, float], generator: torch.Generator) -> Tensor:
    """A random square of each picture, resized bilinearly.

    Args:
        pixels: (N, 3, H, W) float.
        size: side of the result in pixels.
        sides: the shortest and the longest side of a square, as a share of the picture's.

    Returns:
        (N, 3, size, size).
    """
    side, x, y = torch.rand(3, len(pixels), generator=generator, device=pixels.device)
    side = sides[0] + (sides[1] - sides[0]) * side
    move = 1 - side
    theta = torch.zeros(len(pixels), 2, 3, device=pixels.device)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, 0, 2], theta[:, 1, 2] = move * (2 * x - 1), move * (2 * y - 1)
    grid = functional.affine_grid(theta, [len(pixels), 3, size, size], align_corners=False)
    return functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def recoloured(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """(N, 3, H, W) with another brightness, contrast and tint for each picture, and a little noise."""
    shape = (len(pixels), 3, 1, 1)
    draws = torch.rand(3, *shape, generator=generator, device=pixels.device) - 0.5
    mean = pixels.mean((2, 3), keepdim=True)
    contrast, brightness = 1 + strength * draws[0, :, :1], strength * draws[1, :, :1]
    noise = torch.randn(pixels.shape, generator=generator, device=pixels.device)
    return (pixels - mean) * contrast + mean + brightness + 0.5 * strength * draws[2] + 0.05 * strength * noise
