"""Times `latent_sample` and its gradient at the agent's sizes, beside the same in eager PyTorch."""

from __future__ import annotations

import torch
from timing import arguments, measure_limits, median_ms, report

from genreward_fast.kernels.latent_sample import (
    latent_sample,
    latent_sample_backward,
    latent_sample_backward_reference,
    latent_sample_reference,
)

LATENTS, CLASSES, UNIMIX = 32, 16, 0.01  # of size 12M; 16 rows in its scan, 1024 in imagination


def main() -> None:
    options = arguments(__doc__ or "", [16, 1024]).parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    limits = measure_limits(device, dtype)
    results = []
    for rows in options.rows:
        shape = (rows, LATENTS, CLASSES)
        logits, draw, more, other, out = (torch.randn(shape, device=device).to(dtype) for _ in range(5))
        uniform = torch.rand(shape[:-1], device=device)

        def backward(
            logits: torch.Tensor = logits,
            draw: torch.Tensor = draw,
            more: torch.Tensor = more,
            other: torch.Tensor = other,
            out: torch.Tensor = out,
        ) -> torch.Tensor:
            latent_sample_backward(draw, more, other, logits, UNIMIX, out)
            return out

        pairs = {
            "latent_sample": lambda x=logits, u=uniform: latent_sample(x, u, UNIMIX)[1],
            "reference": lambda x=logits, u=uniform: latent_sample_reference(x, u, UNIMIX)[1],
            "gradient": backward,
            "gradient, reference": lambda x=logits, d=draw, m=more, o=other: latent_sample_backward_reference(
                d.float() + m.float(), o, x, UNIMIX
            ),
        }
        for name, call in pairs.items():
            gradient = name.startswith("gradient")
            size = 5 * logits.nbytes if gradient else 2 * logits.nbytes + 12 * uniform.numel()
            if gradient:
                expected = pairs["gradient, reference"]().double()
                error = float((call().double() - expected).norm() / expected.norm())
            else:  # draws that differ: a number may lie within rounding of the end of a class's interval
                error = float((call() != pairs["reference"]()).any(-1).float().mean())
            ms = median_ms(call, device, options.seconds, flush=True)
            results.append(
                {
                    "variant": name,
                    "shape": "x".join(map(str, shape)),
                    "dtype": options.dtype,
                    "ms": ms,
                    "GB/s": size / ms / 1e6,
                    "% of limit": 100 * limits.milliseconds(size, 0) / ms,
                    "relative error": error,
                }
            )
    report("latent_sample", limits, results, options.json)


if __name__ == "__main__":
    main()
