"""Times `phase_weights` and its gradient at the encoder's last convolution."""

from __future__ import annotations

import torch
from comparison import compare
from timing import arguments, measure_limits, report

from genreward_fast.kernels.phase_weights import phase_weights, phase_weights_reference


def main() -> None:
    options = arguments(__doc__ or "", [64]).parse_args()  # channels, here; 64 in size 12M
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    limits = measure_limits(device, dtype)
    results = []
    for rows in options.rows:
        weight = torch.randn(rows, rows, 5, 5, device=device)
        size = weight.nbytes + 144 * rows**2 * dtype.itemsize
        results += compare(
            "phase_weights",
            phase_weights,
            phase_weights_reference,
            (weight,),
            (dtype, 2, 1, 4 * rows, 4 * rows),
            (size, size),
            f"{rows}x{rows}x5x5",
            options,
            limits,
        )
    report("phase_weights", limits, results, options.json)


if __name__ == "__main__":
    main()
