"""How an engine is compared with its module: on which batches, by which error, against which bar."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

# Relative RMS error above which an engine is not written.
FLOAT32_BAR = 1e-4
HALF_BAR = 1e-2

HALF = (torch.float16, torch.bfloat16)

Case = tuple[tuple[Tensor, ...], Tensor]
"""Inputs, and what the module makes of them."""


def relative_rms_error(value: Tensor, reference: Tensor) -> float:
    """RMS(value - reference) / RMS(reference), in float64; infinite where the shapes differ or anything is NaN."""
    if value.shape != reference.shape:
        return math.inf
    wanted = reference.double()
    error = (value.double() - wanted).square().mean().sqrt().item()
    if error == 0:
        return 0.0
    ratio = error / max(wanted.square().mean().sqrt().item(), 1e-300)
    return math.inf if math.isnan(ratio) else ratio


def batches(inputs: tuple[Tensor, ...], dynamic: bool, max_batch: int) -> Iterator[tuple[Tensor, ...]]:
    """The example; for a dynamic batch also one row of it, and one row more than it."""
    yield inputs
    if dynamic:
        batch = inputs[0].shape[0]
        if batch > 1:
            yield tuple(tensor[:1] for tensor in inputs)
        if batch < max_batch:
            yield tuple(torch.cat([tensor, tensor[:1]]) for tensor in inputs)


def bar(module: torch.nn.Module, cases: list[Case]) -> float:
    """The largest error allowed: 1e-2 where the module, its inputs or its output hold half precision, else 1e-4."""
    tensors = [*module.parameters(), *module.buffers(), *(t for case, output in cases for t in (*case, output))]
    return HALF_BAR if any(tensor.dtype in HALF for tensor in tensors) else FLOAT32_BAR
