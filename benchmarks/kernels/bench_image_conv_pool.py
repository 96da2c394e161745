"""Times `image_conv_pool` and its gradients at one batch, beside the same as three kernels around cuDNN's."""

from __future__ import annotations

import torch
from comparison import compare
from timing import arguments, measure_limits, report
from torch.nn import functional

from genreward_fast.kernels.image_blocks import image_blocks
from genreward_fast.kernels.image_conv_pool import image_conv_pool, image_conv_pool_reference
from genreward_fast.kernels.phase_norm_silu import phase_norm_silu
from genreward_fast.kernels.phase_weights import phase_weights

CHANNELS, EPS, COLUMNS = 32, 1e-4, 32  # of size 12M


def in_blocks(
    weight: torch.Tensor, bias: torch.Tensor, scale: torch.Tensor, image: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """The same with the convolution in blocks of 2 x 2 pixels, by cuDNN."""
    x = image_blocks(image, dtype, COLUMNS).permute(0, 3, 1, 2)
    y = functional.conv2d(x, phase_weights(weight, dtype, 2, 1, 4 * CHANNELS, COLUMNS), padding=1)
    return phase_norm_silu(y.permute(0, 2, 3, 1), bias, scale, EPS, "pool_blocks")


def main() -> None:
    options = arguments(__doc__ or "", [1024]).parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    limits = measure_limits(device, dtype)
    results = []
    for rows in options.rows:
        image = torch.randint(0, 256, (rows, 64, 64, 3), dtype=torch.uint8, device=device)
        weight = torch.randn(CHANNELS, 3, 5, 5, device=device) / 8
        pooled = rows * 32 * 32 * CHANNELS
        results += compare(
            "image_conv_pool",
            lambda w, b, s, image, dtype: image_conv_pool(image, w, b, s, EPS, dtype),
            lambda w, b, s, image, dtype: image_conv_pool_reference(image, w, b, s, EPS, dtype),
            (weight, torch.zeros(CHANNELS, device=device), torch.ones(CHANNELS, device=device)),
            (image, dtype),
            (image.nbytes + pooled * dtype.itemsize, image.nbytes + pooled * (2 * dtype.itemsize + 1)),
            f"{rows}x64x64x3",
            options,
            limits,
            {"in blocks": in_blocks},
        )
    report("image_conv_pool", limits, results, options.json)


if __name__ == "__main__":
    main()
