"""Times what follows the first products of state and policy, for one imagined step of the agent of size 12M."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from comparing import Case, compare
from timing import arguments
from torch import Tensor

from genreward_fast.kernels.actor_tail import TailWeights, actor_tail, actor_tail_launches, actor_tail_reference

UNITS, ACTIONS, LAYERS, BOUNDS, EPS = 256, 4, 2, (0.1, 1.0), 1e-4


def called(
    function: Any, weights: TailWeights, deter: Tensor, stoch: Tensor, noise: Tensor, *to: Tensor
) -> tuple[Tensor, ...]:
    function(weights, deter, stoch, noise, *to)
    return to


def cases(rows: int, device: torch.device, dtype: torch.dtype) -> tuple[str, list[Case]]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    scales = torch.rand(3 + LAYERS, UNITS, device=device) + 0.5
    layers = draw(LAYERS, UNITS, UNITS) / 16, draw(LAYERS, UNITS)
    head, embed = (draw(2 * ACTIONS, UNITS) / 16, draw(2 * ACTIONS)), (draw(UNITS, ACTIONS), draw(UNITS), scales[0])
    noise, action = torch.randn(2, rows, ACTIONS, device=device).unbind()
    deter, stoch, out = draw(rows, 3 * UNITS)[:, UNITS:], draw(rows, 2 * UNITS), draw(rows, 3 * UNITS)
    given = (TailWeights(scales, layers, head, embed, BOUNDS, EPS), deter, stoch, noise, action, out)
    size = sum(x.nbytes for x in (deter, stoch, scales, *layers, *head, noise, *embed, action, out))
    variants = {"actor_tail": actor_tail, "one launch a layer": actor_tail_launches}
    reference = partial(called, actor_tail_reference)
    return f"{rows}x{UNITS}x{ACTIONS}", [
        Case(name, partial(called, function), reference, given, size) for name, function in variants.items()
    ]


if __name__ == "__main__":
    compare("actor_tail", arguments(__doc__ or "", [1024]).parse_args(), cases)
