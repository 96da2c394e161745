"""Times `space_norm_silu` and its gradients at one batch."""

from __future__ import annotations

import torch
from comparison import compare
from timing import arguments, measure_limits, report

from genreward_fast.kernels.space_norm_silu import space_norm_silu, space_norm_silu_reference

BLOCKS, PIXELS, CHANNELS, EPS = 8, 16, 64, 1e-4  # of size 12M


def main() -> None:
    options = arguments(__doc__ or "", [1024]).parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    limits = measure_limits(device, dtype)
    results = []
    size = PIXELS * CHANNELS
    for rows in options.rows:
        pieces = torch.randn(BLOCKS, rows, size // BLOCKS, device=device).to(dtype)
        flat = torch.randn(rows, size, device=device).to(dtype)
        biases = [torch.randn(size, device=device) for _ in range(2)]
        results += compare(
            "space_norm_silu",
            space_norm_silu,
            space_norm_silu_reference,
            (pieces, biases[0], flat, biases[1], torch.ones(CHANNELS, device=device)),
            (EPS,),
            (3 * flat.nbytes, 5 * flat.nbytes),
            f"{rows}x{PIXELS}x{CHANNELS}",
            options,
            limits,
        )
    report("space_norm_silu", limits, results, options.json)


if __name__ == "__main__":
    main()
