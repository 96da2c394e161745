"""Times `image_blocks` at the images of one batch."""

from __future__ import annotations

import torch
from comparison import compare
from timing import arguments, measure_limits, report

from genreward_fast.kernels.image_blocks import image_blocks, image_blocks_reference

COLUMNS = 32


def main() -> None:
    options = arguments(__doc__ or "", [16, 1024]).parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    limits = measure_limits(device, dtype)
    results = []
    for rows in options.rows:
        image = torch.randint(0, 256, (rows, 64, 64, 3), dtype=torch.uint8, device=device)
        size = image.nbytes + rows * 32 * 32 * COLUMNS * dtype.itemsize
        results += compare(
            "image_blocks",
            image_blocks,
            image_blocks_reference,
            (),
            (image, dtype, COLUMNS),
            (size, 0),
            f"{rows}x64x64x3",
            options,
            limits,
        )
    report("image_blocks", limits, results, options.json)


if __name__ == "__main__":
    main()
