"""Times `rope` on queries and keys of DINOv3 ViT-S/16+ at 224 pixels; rows are pictures."""

from __future__ import annotations

from functools import partial

import torch
from timing import arguments, measure_limits, median_ms, report

from genreward_fast.kernels.rope import rope, rope_reference

TOKENS, PATCHES, HEADS, HEAD_SIZE = 201, 196, 6, 64


def main() -> None:
    options = arguments(__doc__ or "", [1, 16, 64]).parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    limits = measure_limits(device, dtype)
    results = []
    for pictures in options.rows:
        x = torch.randn(pictures, TOKENS, 3, HEADS, HEAD_SIZE, device=device).to(dtype)
        angle = 6.3 * torch.rand(PATCHES, HEAD_SIZE // 2, device=device)
        tables = angle.cos(), angle.sin()
        size = 2 * x[:, :PATCHES, :2].numel() * x.itemsize + 2 * angle.nbytes
        wanted = x.double()
        rope_reference(wanted, *tables)
        for name, function in (("rope", rope), ("reference", rope_reference)):
            found = x.clone()
            function(found, *tables)
            error = float((found.double() - wanted).norm() / wanted.norm())
            # In place: it rotates on and on, which changes no length.
            ms = median_ms(partial(function, found, *tables), device, options.seconds, flush=True)
            results.append(
                {
                    "variant": name,
                    "shape": "x".join(map(str, x.shape)),
                    "dtype": options.dtype,
                    "ms": ms,
                    "GB/s": size / ms / 1e6,
                    "% of limit": 100 * limits.milliseconds(size, 0) / ms,
                    "relative error": error,
                }
            )
    report("rope", limits, results, options.json)


if __name__ == "__main__":
    main()
