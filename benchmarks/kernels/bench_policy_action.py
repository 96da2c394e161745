"""Times the policy's last layers with the embedding of their draw, for one imagined step of the agent of size 12M."""

from __future__ import annotations

import torch
from comparing import Case, compare
from timing import arguments
from torch import Tensor

from genreward_fast.kernels.policy_action import policy_action, policy_action_reference

UNITS, ACTIONS, BOUNDS, EPS = 256, 4, (0.1, 1.0), 1e-4


def ours(x: Tensor, scale: Tensor, head: tuple, noise: Tensor, action: Tensor, embed: tuple, out: Tensor) -> tuple:
    policy_action(x, scale, head, noise, action, BOUNDS, embed, EPS, out)
    return action, out


def reference(x: Tensor, scale: Tensor, head: tuple, noise: Tensor, action: Tensor, embed: tuple, out: Tensor) -> tuple:
    policy_action_reference(x, scale, head, noise, action, BOUNDS, embed, EPS, out)
    return action, out


def cases(rows: int, device: torch.device, dtype: torch.dtype) -> tuple[str, list[Case]]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    scale = torch.rand(UNITS, device=device) + 0.5
    head, embed = (draw(2 * ACTIONS, UNITS) / 16, draw(2 * ACTIONS)), (draw(UNITS, ACTIONS), draw(UNITS), scale)
    noise, action = torch.randn(2, rows, ACTIONS, device=device).unbind()
    x, out = draw(rows, UNITS), draw(rows, UNITS)
    moved = (x, scale, *head, noise, action, *embed, out)
    size = sum(tensor.nbytes for tensor in moved)
    return f"{rows}x{UNITS}x{ACTIONS}", [
        Case("policy_action", ours, reference, (x, scale, head, noise, action, embed, out), size)
    ]


if __name__ == "__main__":
    compare("policy_action", arguments(__doc__ or "", [1024]).parse_args(), cases)
