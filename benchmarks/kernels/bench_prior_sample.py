"""Times the prior's layers after its first product with the draw, for one imagined step of the agent of size 12M."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from comparing import Case, compare
from timing import arguments
from torch import Tensor

from genreward_fast.kernels.prior_sample import (
    PriorWeights,
    prior_sample,
    prior_sample_launches,
    prior_sample_reference,
)

UNITS, LATENTS, CLASSES, LAYERS, UNIMIX, EPS = 256, 32, 16, 1, 0.01, 1e-4


def called(function: Any, weights: PriorWeights, x: Tensor, uniform: Tensor, logits: Tensor, out: Tensor) -> Tensor:
    """The logits alone: where they are rounded differently, some draws differ."""
    function(weights, x, uniform, None, logits, out)
    return logits


def cases(rows: int, device: torch.device, dtype: torch.dtype) -> tuple[str, list[Case]]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    scales = torch.rand(1 + LAYERS, UNITS, device=device) + 0.5
    layers = draw(LAYERS, UNITS, UNITS) / 16, draw(LAYERS, UNITS)
    output = draw(LATENTS * CLASSES, UNITS) / 16, draw(LATENTS * CLASSES)
    uniform = torch.rand(rows, LATENTS, device=device)
    x, logits, out = draw(rows, UNITS), *draw(2, rows, LATENTS, CLASSES).unbind()
    given = (PriorWeights(scales, layers, output, UNIMIX, EPS), x, uniform, logits, out)
    size = sum(x.nbytes for x in (x, scales, *layers, *output, uniform, logits, out)) + 8 * uniform.numel()
    variants = {"prior_sample": prior_sample, "one launch a layer": prior_sample_launches}
    reference = partial(called, prior_sample_reference)
    return f"{rows}x{UNITS}x{LATENTS * CLASSES}", [
        Case(name, partial(called, function), reference, given, size) for name, function in variants.items()
    ]


if __name__ == "__main__":
    compare("prior_sample", arguments(__doc__ or "", [1024]).parse_args(), cases)
