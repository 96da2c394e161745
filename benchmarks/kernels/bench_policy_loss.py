"""Times the policy's loss, its gradient and the policy's parameters at the agent's size: 15 imagined steps."""

from __future__ import annotations

import torch
from comparing import Case, compare
from timing import arguments

from genreward_fast.kernels.policy_loss import (
    bounded_normal,
    bounded_normal_reference,
    policy_loss,
    policy_loss_reference,
)

STEPS, ACTIONS = 15, 4


def cases(rows: int, device: torch.device, dtype: torch.dtype) -> tuple[str, list[Case]]:
    raw = torch.randn(STEPS + 1, rows, 2 * ACTIONS, device=device).to(dtype)
    action = torch.randn(rows, STEPS, ACTIONS, device=device).transpose(0, 1)
    returns, value, weight = (torch.randn(STEPS, rows, device=device) for _ in range(3))
    inputs = (raw, action, returns, value, weight, torch.ones((), device=device), 0.1, 1.0, 3e-4)
    size = raw.nbytes + 4 * action.numel()
    return f"{STEPS}x{rows}x{ACTIONS}", [
        Case("policy_loss", policy_loss, policy_loss_reference, inputs, size + 7 * returns.nbytes),
        Case(
            "by the outputs", policy_loss, policy_loss_reference, inputs, size + raw.nbytes + 3 * returns.nbytes, by=0
        ),
        Case("parameters of one step", bounded_normal, bounded_normal_reference, (raw[0], 0.1, 1.0), 3 * raw[0].nbytes),
    ]


if __name__ == "__main__":
    compare("policy_loss", arguments(__doc__ or "", [1024]).parse_args(), cases)
