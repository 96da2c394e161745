"""Times `frame_conv` on a clip's bytes at the video encoder's first convolution; rows are the picture's sides."""

from __future__ import annotations

from typing import Any

import torch
from comparison import compare
from timing import arguments, measure_limits, report
from torch import Tensor

from genreward_fast.kernels.frame_conv import frame_conv, frame_conv_reference

CHANNELS, CHUNKS = 128, [8, 8]  # of CogVideoX's encoder and sixteen frames


def main() -> None:
    options = arguments(__doc__ or "", [480, 64]).parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    limits = measure_limits(device, dtype)
    results: list[dict[str, Any]] = []
    weight = (torch.randn(CHANNELS, 3, 3, 3, 3, device=device) / 9).to(dtype)
    bias = torch.rand(CHANNELS, device=device).to(dtype)
    for side in options.rows:
        frames = torch.randint(0, 256, (1, sum(CHUNKS), side, side, 3), device=device, dtype=torch.uint8)
        size = frames.nbytes + sum(CHUNKS) * side**2 * CHANNELS * dtype.itemsize
        flops = 2 * 81 * CHANNELS * sum(CHUNKS) * side**2

        def fused(frames: Tensor) -> Tensor:
            return frame_conv(frames, weight, bias, CHUNKS)[0]

        def plain(frames: Tensor) -> Tensor:
            return frame_conv_reference(frames, weight, bias)

        title = f"{sum(CHUNKS)}x{side}x{side}"
        results += compare("frame_conv", fused, plain, (), (frames,), (size, size), title, options, limits, flops=flops)
    report("frame_conv", limits, results, options.json)


if __name__ == "__main__":
    main()
