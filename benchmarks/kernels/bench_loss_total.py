"""Times the sum of the losses' means, and the statistics of all that an update measures."""

from __future__ import annotations

import torch
from comparing import Case, compare
from timing import arguments

from genreward_fast.kernels.loss_total import loss_total, loss_total_reference

STEPS = 15


def cases(rows: int, device: torch.device, dtype: torch.dtype) -> tuple[str, list[Case]]:
    losses = [torch.rand(rows + 1, device=device) for _ in range(6)]
    losses += [torch.rand(STEPS, rows + 1, device=device) for _ in range(2)]
    others = [torch.rand_like(loss) for loss in (*losses[:4], *losses[6:] * 4)]
    inputs = (losses, [1.0] * len(losses), others)
    size = sum(x.nbytes for x in (*losses, *others))
    return f"{len(losses) + len(others)} of {rows + 1}", [
        Case("loss_total", loss_total, loss_total_reference, inputs, size),
    ]


if __name__ == "__main__":
    compare("loss_total", arguments(__doc__ or "", [1024]).parse_args(), cases)
