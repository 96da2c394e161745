"""Times `rmsnorm_silu` and its gradients at the agent's largest norm and at one of its scan's, beside eager PyTorch."""

from __future__ import annotations

import torch
from timing import arguments, measure_limits, median_ms, report
from torch.nn import functional

from genreward_fast.kernels.rmsnorm_silu import (
    rmsnorm_silu,
    rmsnorm_silu_backward,
    rmsnorm_silu_backward_reference,
    rmsnorm_silu_reference,
)

EPS = 1e-4
WIDTH = 2048  # with 16 rows: one step of the scan of size 12M


def main() -> None:
    parser = arguments(__doc__ or "", [16, 16384])
    parser.add_argument("--width", type=int, default=WIDTH)
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    limits = measure_limits(device, dtype)
    results = []
    for rows in options.rows:
        x, grad = (torch.randn(rows, options.width, device=device).to(dtype) for _ in range(2))
        scale = torch.rand(options.width, device=device) + 0.5

        def eager(x: torch.Tensor = x, scale: torch.Tensor = scale) -> torch.Tensor:
            return functional.silu(functional.rms_norm(x.float(), scale.shape, scale, EPS).to(x.dtype))

        pairs = {
            "rmsnorm_silu": lambda x=x, s=scale: rmsnorm_silu(x, s, EPS),
            "reference": lambda x=x, s=scale: rmsnorm_silu_reference(x, s, EPS),
            "torch rms_norm, silu": eager,
            "gradients": lambda g=grad, x=x, s=scale: rmsnorm_silu_backward(g, x, s, EPS)[0],
            "gradients, reference": lambda g=grad, x=x, s=scale: rmsnorm_silu_backward_reference(g, x, s, EPS)[0],
        }
        for name, call in pairs.items():
            backward = name.startswith("gradients")
            size = (3 if backward else 2) * x.nbytes
            expected = (pairs["gradients, reference"] if backward else pairs["reference"])().double()
            error = float((call().double() - expected).norm() / expected.norm())
            ms = median_ms(call, device, options.seconds, flush=True)
            results.append(
                {
                    "variant": name,
                    "shape": f"{rows}x{options.width}",
                    "dtype": options.dtype,
                    "ms": ms,
                    "GB/s": size / ms / 1e6,
                    "% of limit": 100 * limits.milliseconds(size, 0) / ms,
                    "relative error": error,
                }
            )
    report("rmsnorm_silu", limits, results, options.json)


if __name__ == "__main__":
    main()
