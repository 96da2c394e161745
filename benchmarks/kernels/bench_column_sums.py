"""Times `column_sums` of a bias's gradient, or with float32 of partial sums."""

from __future__ import annotations

import argparse

import torch
from comparing import Case, compare
from timing import arguments

from genreward_fast.kernels.column_sums import column_sums, column_sums_reference

WIDTH = 512


def main() -> None:
    parser = arguments(__doc__ or "", [256, 1024, 16384])
    parser.add_argument("--width", type=int, default=WIDTH)
    options: argparse.Namespace = parser.parse_args()

    def cases(rows: int, device: torch.device, dtype: torch.dtype) -> tuple[str, list[Case]]:
        x = torch.rand(rows, options.width, device=device).to(dtype)
        return f"{rows}x{options.width}", [Case("column_sums", column_sums, column_sums_reference, (x,), x.nbytes)]

    compare("column_sums", options, cases)


if __name__ == "__main__":
    main()
