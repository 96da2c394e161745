"""Times `time_pool` on a clip's maps at the video encoder's widest level; rows are the picture's sides."""

from __future__ import annotations

import torch
from comparison import compare
from timing import arguments, measure_limits, report

from genreward_fast.kernels.time_pool import time_pool, time_pool_reference

CHANNELS, FRAMES = 128, 16  # of CogVideoX's encoder


def main() -> None:
    options = arguments(__doc__ or "", [480, 64]).parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    limits = measure_limits(device, dtype)
    results = []
    for side in options.rows:
        shape = (1, FRAMES, side, side, CHANNELS)
        x, residual = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
        shift = torch.rand(CHANNELS, device=device).to(dtype)
        size = x.nbytes + residual.nbytes + x.nbytes // 2
        results += compare(
            "time_pool",
            time_pool,
            time_pool_reference,
            (),
            (x, shift, residual, True),
            (size, size),
            f"{FRAMES}x{side}x{side}x{CHANNELS}",
            options,
            limits,
        )
    report("time_pool", limits, results, options.json)


if __name__ == "__main__":
    main()
