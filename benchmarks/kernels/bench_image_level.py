"""Times `image_level` and its gradients at the images of one batch, beside the kernels that it replaces."""

from __future__ import annotations

import torch
from comparison import compare
from timing import arguments, measure_limits, report
from torch import Tensor
from torch.nn import functional

from genreward_fast.kernels.image_blocks import image_blocks
from genreward_fast.kernels.image_level import image_level, image_level_reference
from genreward_fast.kernels.phase_norm_silu import phase_norm_silu
from genreward_fast.kernels.phase_weights import phase_weights

EPS = 1e-4
CHANNELS = 32  # of size 12M
COLUMNS = 32


def fused(weight: Tensor, bias: Tensor, scale: Tensor, image: Tensor, dtype: torch.dtype) -> Tensor:
    return image_level(image, weight, bias, scale, EPS, dtype)


def reference(weight: Tensor, bias: Tensor, scale: Tensor, image: Tensor, dtype: torch.dtype) -> Tensor:
    return image_level_reference(image, weight, bias, scale, EPS, dtype)


def one_by_one(weight: Tensor, bias: Tensor, scale: Tensor, image: Tensor, dtype: torch.dtype) -> Tensor:
    blocks = image_blocks(image, dtype, COLUMNS).permute(0, 3, 1, 2)
    x = functional.conv2d(blocks, phase_weights(weight, dtype, 2, 1, 4 * CHANNELS, COLUMNS), padding=1)
    return phase_norm_silu(x.permute(0, 2, 3, 1), bias, scale, EPS, "pool_blocks")


def main() -> None:
    options = arguments(__doc__ or "", [16, 1024]).parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    limits = measure_limits(device, dtype)
    results = []
    for rows in options.rows:
        image = torch.randint(0, 256, (rows, 64, 64, 3), dtype=torch.uint8, device=device)
        weight = torch.randn(CHANNELS, 3, 5, 5, device=device) / 75**0.5
        bias, scale = torch.randn(CHANNELS, device=device), torch.rand(CHANNELS, device=device) + 0.5
        size = image.nbytes + rows * 32 * 32 * CHANNELS * dtype.itemsize
        results += compare(
            "image_level",
            fused,
            reference,
            (weight, bias, scale),
            (image, dtype),
            (size, size),
            f"{rows}x64x64x3 to {CHANNELS}",
            options,
            limits,
            {"one by one": one_by_one},
            2 * rows * 64 * 64 * weight.numel(),
        )
    report("image_level", limits, results, options.json)


if __name__ == "__main__":
    main()
