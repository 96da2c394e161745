"""Times `layer_norm` on tokens of DINOv3 ViT-S/16+ at 224 pixels; rows are pictures."""

from __future__ import annotations

import torch
from comparison import compare
from timing import arguments, measure_limits, report

from genreward_fast.kernels.layer_norm import layer_norm, layer_norm_reference

TOKENS, WIDTH, EPS = 201, 384, 1e-5


def main() -> None:
    options = arguments(__doc__ or "", [1, 16, 64]).parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    limits = measure_limits(device, dtype)
    results = []
    for pictures in options.rows:
        x = torch.randn(pictures * TOKENS, WIDTH, device=device).to(dtype)
        weight, bias, shift = (torch.rand(WIDTH, device=device) for _ in range(3))
        size = 2 * x.nbytes + 3 * weight.nbytes
        results += compare(
            "layer_norm",
            layer_norm,
            layer_norm_reference,
            (),
            (x, weight, bias, EPS, shift),
            (size, size),
            f"{pictures}x{TOKENS}x{WIDTH}",
            options,
            limits,
        )
    report("layer_norm", limits, results, options.json)


if __name__ == "__main__":
    main()
