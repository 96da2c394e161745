"""Times `shifted_conv` on a clip's maps at the video encoder's widest level, in float8 on CUDA; rows are the sides."""

from __future__ import annotations

from typing import Any

import torch
from comparison import compare
from timing import arguments, measure_limits, report
from torch import Tensor
from torch.nn import functional

from genreward_fast.kernels.moments import to_float8
from genreward_fast.kernels.shifted_conv import float8_weight, shifted_conv, shifted_conv_reference, weight_rows

CHANNELS, CHUNKS = 128, [8, 8]  # of CogVideoX's encoder and sixteen frames


def main() -> None:
    options = arguments(__doc__ or "", [480, 64]).parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    limits = measure_limits(device, dtype)
    results: list[dict[str, Any]] = []
    weight = (torch.randn(CHANNELS, CHANNELS, 3, 3, 3, device=device) * (27 * CHANNELS) ** -0.5).to(dtype)
    bias = torch.rand(CHANNELS, device=device)
    last = weight.contiguous(memory_format=torch.channels_last_3d)
    for side in options.rows:
        x = torch.randn(1, sum(CHUNKS) + 2, side + 2, side + 2, CHANNELS, device=device).to(dtype)
        flops = 2 * 27 * CHANNELS**2 * sum(CHUNKS) * side**2
        size = 2 * x.nbytes
        kinds: list[tuple[str, Tensor, Tensor, Tensor | None]] = [("", x, weight_rows(weight).contiguous(), None)]
        if device.type == "cuda":
            rows, factor = float8_weight(weight, 8.0)
            kinds.append((", float8", to_float8(x.float() * 8), rows, factor))
        for name, given, rows, factor in kinds:
            ways: dict[str, Any] = {"factor": factor, "dtype": dtype}

            def fused(x: Tensor, rows: Tensor = rows, ways: dict[str, Any] = ways) -> Tensor:
                return shifted_conv(x, rows, bias, CHUNKS, **ways)[0]

            def plain(x: Tensor, rows: Tensor = rows, ways: dict[str, Any] = ways) -> Tensor:
                return shifted_conv_reference(x, rows, bias, **ways)

            def convolution(x: Tensor) -> Tensor:
                return functional.conv3d(x.permute(0, 4, 1, 2, 3), last, bias.to(dtype)).permute(0, 2, 3, 4, 1)

            title = f"{sum(CHUNKS)}x{side}x{side}x{CHANNELS}{name}"
            peers = {} if name else {"PyTorch's conv3d": convolution}
            results += compare(
                "shifted_conv", fused, plain, (), (given,), (size, size), title, options, limits, peers, flops
            )
    report("shifted_conv", limits, results, options.json)


if __name__ == "__main__":
    main()
