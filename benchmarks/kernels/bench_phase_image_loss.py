"""Times `phase_image_loss` and its gradients at one batch."""

from __future__ import annotations

import torch
from comparison import compare
from timing import arguments, measure_limits, report

from genreward_fast.kernels.phase_image_loss import phase_image_loss, phase_image_loss_reference

SIDE = 4


def main() -> None:
    options = arguments(__doc__ or "", [1024]).parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    limits = measure_limits(device, dtype)
    results = []
    for rows in options.rows:
        x = torch.randn(rows, 16, 16, 3 * SIDE**2, device=device).to(dtype)
        image = torch.randint(0, 256, (rows, 64, 64, 3), dtype=torch.uint8, device=device)
        results += compare(
            "phase_image_loss",
            phase_image_loss,
            phase_image_loss_reference,
            (x, torch.zeros(3, device=device)),
            (image, SIDE),
            (x.nbytes + image.nbytes, 2 * x.nbytes + image.nbytes),
            f"{rows}x64x64x3",
            options,
            limits,
        )
    report("phase_image_loss", limits, results, options.json)


if __name__ == "__main__":
    main()
