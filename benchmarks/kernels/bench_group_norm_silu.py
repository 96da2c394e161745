"""Times `group_norm_silu` on a clip's maps at the video encoder's widest level; rows are the picture's sides."""

from __future__ import annotations

from typing import Any

import torch
from comparison import compare
from timing import arguments, measure_limits, report
from torch import Tensor

from genreward_fast.kernels.group_norm_silu import group_norm_silu, group_norm_silu_reference

CHANNELS, GROUPS, EPS, CHUNKS = 128, 32, 1e-6, [8, 8]  # of CogVideoX's encoder and sixteen frames


def main() -> None:
    options = arguments(__doc__ or "", [480, 64]).parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    limits = measure_limits(device, dtype)
    results: list[dict[str, Any]] = []
    weight, bias, shift = (torch.rand(CHANNELS, device=device).to(dtype) for _ in range(3))
    for side in options.rows:
        shape = (1, sum(CHUNKS), side, side, CHANNELS)
        x, residual = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
        # Everything is read once for the statistics and once more for the result.
        for name, added, passes in (("", None, 3), (", kept sum with residual", residual, 5)):
            ways = {"shift": shift, "residual": added, "before": 2, "around": 1}

            def fused(x: Tensor, ways: dict[str, Any] = ways) -> Tensor:
                return group_norm_silu(x, weight, bias, GROUPS, EPS, CHUNKS, keep=False, **ways)[0]

            def plain(x: Tensor, ways: dict[str, Any] = ways) -> Tensor:
                return group_norm_silu_reference(x, weight, bias, GROUPS, EPS, CHUNKS, **ways)[0]

            size = passes * x.nbytes
            title = f"{sum(CHUNKS)}x{side}x{side}x{CHANNELS}{name}"
            results += compare("group_norm_silu", fused, plain, (), (x,), (size, size), title, options, limits)
    report("group_norm_silu", limits, results, options.json)


if __name__ == "__main__":
    main()
