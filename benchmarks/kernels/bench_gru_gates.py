"""Times `gru_gates` and its gradients at the agent's sizes, beside the same in eager PyTorch."""

from __future__ import annotations

import torch
from timing import arguments, measure_limits, median_ms, report

from genreward_fast.kernels.gru_gates import (
    gru_gates,
    gru_gates_backward,
    gru_gates_backward_reference,
    gru_gates_reference,
)

SIZE, BLOCKS = 2048, 8  # of size 12M; 16 rows in its scan, 1024 in imagination


def main() -> None:
    options = arguments(__doc__ or "", [16, 1024]).parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    limits = measure_limits(device, dtype)
    results = []
    for rows in options.rows:
        gates, out = (torch.randn(rows, 3 * SIZE, device=device).to(dtype) for _ in range(2))
        state, grad, more = (torch.randn(rows, SIZE, device=device).to(dtype) for _ in range(3))
        bias = torch.randn(3 * SIZE, device=device).to(dtype)

        def backward(
            gates: torch.Tensor = gates,
            out: torch.Tensor = out,
            state: torch.Tensor = state,
            grad: torch.Tensor = grad,
            more: torch.Tensor = more,
            bias: torch.Tensor = bias,
        ) -> torch.Tensor:
            return gru_gates_backward(grad, more, gates, bias, state, BLOCKS, out)

        pairs = {
            "gru_gates": lambda g=gates, b=bias, s=state: gru_gates(g, b, s, BLOCKS),
            "reference": lambda g=gates, b=bias, s=state: gru_gates_reference(g, b, s, BLOCKS),
            "gradients": backward,
            "gradients, reference": lambda d=grad, m=more, g=gates, b=bias, s=state: gru_gates_backward_reference(
                d.float() + m.float(), g, b, s, BLOCKS
            )[1],
        }
        for name, call in pairs.items():
            gradients = name.startswith("gradients")
            size = (2 * gates.nbytes + 4 * state.nbytes) if gradients else (gates.nbytes + 2 * state.nbytes)
            expected = (pairs["gradients, reference"] if gradients else pairs["reference"])().double()
            error = float((call().double() - expected).norm() / expected.norm())
            ms = median_ms(call, device, options.seconds, flush=True)
            results.append(
                {
                    "variant": name,
                    "shape": f"{rows}x{SIZE}",
                    "dtype": options.dtype,
                    "ms": ms,
                    "GB/s": size / ms / 1e6,
                    "% of limit": 100 * limits.milliseconds(size, 0) / ms,
                    "relative error": error,
                }
            )
    report("gru_gates", limits, results, options.json)


if __name__ == "__main__":
    main()
