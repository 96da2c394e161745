"""Times `latent_cosine` on latents of the paper's size, beside eager PyTorch."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from genreward_fast.bench.timing import arguments, measure_limits, median_ms, report
from genreward_fast.kernels.latent_cosine import latent_cosine, latent_cosine_reference

SHAPE = (16, 4, 60, 60)  # a clip of 16 frames at 480×480: channels, frames, height, width


def main(argv: list[str] | None = None) -> None:
    options = arguments(__doc__ or "", [1, 4, 16, 64, 256]).parse_args(argv)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    limits = measure_limits(device, dtype)
    results = []
    for rows in options.rows:
        latent = torch.randn(rows, *SHAPE, device=device).to(dtype)
        goal = functional.normalize(torch.randn(SHAPE, device=device).flatten(), dim=0).view(SHAPE)
        flat = goal.flatten()[None]
        calls = {
            "latent_cosine": lambda x=latent, g=goal: latent_cosine(x, g),
            "reference": lambda x=latent, g=goal: latent_cosine_reference(x, g),
            "torch cosine_similarity": lambda x=latent, g=flat: functional.cosine_similarity(x.flatten(1).float(), g),
        }
        size = latent.nbytes + goal.nbytes
        flops = 4 * rows * math.prod(SHAPE)
        least = limits.milliseconds(size, 0)  # far from bound by arithmetic
        expected = calls["torch cosine_similarity"]()
        for name, call in calls.items():
            ms = median_ms(call, device, options.seconds, flush=True)
            results.append(
                {
                    "variant": name,
                    "shape": "x".join(map(str, latent.shape)),
                    "dtype": options.dtype,
                    "ms": ms,
                    "GB/s": size / ms / 1e6,
                    "TFLOP/s": flops / ms / 1e9,
                    "% of limit": 100 * least / ms,
                    "max error": (call() - expected).abs().max().item(),
                }
            )
    report("latent_cosine", limits, results, options.json)


if __name__ == "__main__":
    main()
