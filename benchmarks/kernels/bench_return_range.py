"""Times the move of the return range by the returns of one update: 15 imagined steps of each row."""

from __future__ import annotations

import torch
from comparing import Case, compare
from timing import arguments

from genreward_fast.kernels.return_range import move_range, move_range_reference

STEPS = 15


def cases(rows: int, device: torch.device, dtype: torch.dtype) -> tuple[str, list[Case]]:
    returns = torch.randn(STEPS, rows, device=device)

    def settled(move):  # with a rate of 1 every call gives the same
        low, high = torch.zeros(2, device=device).unbind()
        return lambda values: move(values, low, high, (0.05, 0.95), 1.0, 0.1)

    ours, reference = settled(move_range), settled(move_range_reference)
    return f"{STEPS}x{rows}", [Case("return_range", ours, reference, (returns,), returns.nbytes)]


if __name__ == "__main__":
    compare("return_range", arguments(__doc__ or "", [1024]).parse_args(), cases)
