"""Times the two-hot loss, its gradient and the mean at the agent's sizes: replayed rows, and imagined ones."""

from __future__ import annotations

import torch
from comparing import Case, compare
from timing import arguments

from genreward_fast.agent.distributions import symexp_bins
from genreward_fast.kernels.twohot import twohot_loss, twohot_loss_reference, twohot_mean, twohot_mean_reference

BINS = 255


def cases(rows: int, device: torch.device, dtype: torch.dtype) -> tuple[str, list[Case]]:
    logits = torch.randn(rows, BINS, device=device).to(dtype)
    bins = symexp_bins(BINS).to(device)
    target, second = (10 * torch.randn(rows, device=device) for _ in range(2))
    weight = torch.rand(rows, device=device)
    inputs = (logits, bins, target, second, 1.0, weight)
    more = 4 * weight.nbytes
    return f"{rows}x{BINS}", [
        Case("twohot", twohot_loss, twohot_loss_reference, inputs, logits.nbytes + more),
        Case("by the logits", twohot_loss, twohot_loss_reference, inputs, 2 * logits.nbytes + more, by=0),
        Case("the mean", twohot_mean, twohot_mean_reference, (logits, bins), logits.nbytes + weight.nbytes),
    ]


if __name__ == "__main__":
    compare("twohot", arguments(__doc__ or "", [1024, 16384]).parse_args(), cases)
