"""Times `gated_silu` on tokens of DINOv3 ViT-S/16+ at 224 pixels; rows are pictures."""

from __future__ import annotations

import torch
from comparison import compare
from timing import arguments, measure_limits, report

from genreward_fast.kernels.gated_silu import gated_silu, gated_silu_reference

TOKENS, HIDDEN = 201, 1536


def main() -> None:
    options = arguments(__doc__ or "", [1, 16, 64]).parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    limits = measure_limits(device, dtype)
    results = []
    for pictures in options.rows:
        x = torch.randn(pictures * TOKENS, 2 * HIDDEN, device=device).to(dtype)
        size = x.nbytes + x.nbytes // 2
        results += compare(
            "gated_silu",
            gated_silu,
            gated_silu_reference,
            (),
            (x,),
            (size, size),
            f"{pictures}x{TOKENS}x{HIDDEN}",
            options,
            limits,
        )
    report("gated_silu", limits, results, options.json)


if __name__ == "__main__":
    main()
