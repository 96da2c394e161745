"""Times `phase_norm_silu` and its gradients after the encoder's first convolution and the decoder's second one."""

from __future__ import annotations

import torch
from comparison import compare
from timing import arguments, measure_limits, report

from genreward_fast.kernels.phase_norm_silu import phase_norm_silu, phase_norm_silu_reference

EPS = 1e-4
# Mode, height and width in blocks, channels, channels of the result, for a depth of 16, that of size 12M.
MODES = {"pool_blocks": (32, 32, 32), "shuffle": (8, 48, 64)}


def main() -> None:
    parser = arguments(__doc__ or "", [1024])
    parser.add_argument("--mode", choices=list(MODES), default="pool_blocks")
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    limits = measure_limits(device, dtype)
    side, channels, columns = MODES[options.mode]
    results = []
    for rows in options.rows:
        x = torch.randn(rows, side, side, 4 * channels, device=device).to(dtype)
        bias, scale = torch.randn(channels, device=device), torch.rand(channels, device=device) + 0.5
        result = x.nbytes // 4 if options.mode == "pool_blocks" else x.nbytes * columns // channels
        results += compare(
            "phase_norm_silu",
            phase_norm_silu,
            phase_norm_silu_reference,
            (x, bias, scale),
            (EPS, options.mode, columns if options.mode == "shuffle" else None),
            (x.nbytes + result, 2 * x.nbytes + result),
            f"{options.mode} {rows}x{side}x{side}x4x{channels}",
            options,
            limits,
        )
    report("phase_norm_silu", limits, results, options.json)


if __name__ == "__main__":
    main()
