"""Times `activated_linear` on tokens of DINOv3 ViT-S/16+ at 224 pixels, beside product and gate; rows are pictures."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from comparison import compare
from timing import arguments, measure_limits, report
from torch import Tensor

from genreward_fast.kernels.activated_linear import activated_linear, activated_linear_reference
from genreward_fast.kernels.gated_silu import gated_silu

TOKENS, WIDTH, HIDDEN = 201, 384, 1536


def main() -> None:
    options = arguments(__doc__ or "", [1, 16, 64]).parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    limits = measure_limits(device, dtype)
    results: list[dict[str, Any]] = []
    weight = (torch.randn(2 * HIDDEN, WIDTH, device=device) * WIDTH**-0.5).to(dtype)
    bias = torch.randn(2 * HIDDEN, device=device).to(dtype)

    def apart(x: Tensor, *_: Tensor) -> Tensor:
        return gated_silu(torch.addmm(bias, x, weight.t()))

    for pictures in options.rows:
        x = torch.randn(pictures * TOKENS, WIDTH, device=device).to(dtype)
        size = x.nbytes + weight.nbytes + len(x) * HIDDEN * x.element_size()
        flops = 2 * len(x) * weight.numel()
        results += compare(
            "activated_linear",
            partial(activated_linear, gated=True),
            partial(activated_linear_reference, gated=True),
            (),
            (x, weight, bias),
            (size, size),
            f"{pictures}x{TOKENS}x{WIDTH} to {HIDDEN}",
            options,
            limits,
            {"product, then gate": apart},
            flops,
        )
    report("activated_linear", limits, results, options.json)


if __name__ == "__main__":
    main()
