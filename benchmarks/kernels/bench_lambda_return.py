"""Times λ-returns at the agent's sizes: 64 replayed steps, and imagined ones of 15 with what feeds them."""

from __future__ import annotations

import torch
from comparing import Case, compare
from timing import arguments

from genreward_fast.kernels.lambda_return import (
    imagined_return,
    imagined_return_reference,
    lambda_return,
    lambda_return_reference,
)

REPLAYED, IMAGINED = 64, 16


def cases(rows: int, device: torch.device, dtype: torch.dtype) -> tuple[str, list[Case]]:
    reward, value = (torch.randn(rows, REPLAYED, device=device) for _ in range(2))
    terminal, last = (torch.rand(rows, REPLAYED, device=device) < 0.01 for _ in range(2))
    replayed = (reward, terminal, last, value, 0.997, 0.95)
    dreamed, boot = (torch.randn(IMAGINED, rows, device=device) for _ in range(2))
    imagined = (dreamed, (3 + dreamed).to(dtype), boot, 1.0, 0.95)
    return f"{rows} rows", [
        Case("lambda_return", lambda_return, lambda_return_reference, replayed, 3 * value.nbytes + 2 * last.nbytes),
        Case("of imagined rows", imagined_return, imagined_return_reference, imagined, 6 * boot.nbytes),
    ]


if __name__ == "__main__":
    compare("lambda_return", arguments(__doc__ or "", [16, 1024]).parse_args(), cases)
