"""Times the continuation loss and its gradient at the agent's size."""

from __future__ import annotations

import torch
from comparing import Case, compare
from timing import arguments

from genreward_fast.kernels.continuation_loss import continuation_loss, continuation_loss_reference


def cases(rows: int, device: torch.device, dtype: torch.dtype) -> tuple[str, list[Case]]:
    logit = torch.randn(rows, device=device).to(dtype)
    inputs = (logit, torch.rand(rows, device=device) < 0.01, 0.997)
    ours, reference = continuation_loss, continuation_loss_reference
    size = logit.nbytes + 5 * rows
    return f"{rows}", [
        Case("continuation_loss", ours, reference, inputs, size),
        Case("by the logit", ours, reference, inputs, size + logit.nbytes, by=0),
    ]


if __name__ == "__main__":
    compare("continuation_loss", arguments(__doc__ or "", [1024]).parse_args(), cases)
