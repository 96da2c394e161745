"""What ops share, first of all whether they can use Triton here. Importing this needs no Triton and no GPU."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

HAS_TRITON = importlib.util.find_spec("triton") is not None
# Read once, as Triton itself does when it decorates a kernel.
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"

FEW = 16
"""From so many values in a row on a softmax on a CPU is better off row by row."""

_allowed = True


@contextmanager
def references_only() -> Iterator[None]:
    """Inside it every op runs its plain reference, on whatever device, to compare the kernels with."""
    global _allowed
    before, _allowed = _allowed, False
    try:
        yield
    finally:
        _allowed = before


def runs_triton(*tensors: Tensor) -> bool:
    """Whether tensors on this device go through Triton: CUDA ones, and all in Triton's interpreter; never float64."""
    if not HAS_TRITON or not _allowed or not (INTERPRETED or tensors[0].is_cuda):
        return False  # on a CPU most calls end here, some 30 of them for an action
    if any(tensor.dtype == torch.float64 for tensor in tensors):
        return False
    return INTERPRETED or all(tensor.is_cuda for tensor in tensors)


def wide(x: Tensor) -> Tensor:
    """x in float32, which is what references compute in; as it is if it is float64, so that they can be exact."""
    return x if x.dtype == torch.float64 else x.float()


def softmax(x: Tensor) -> Tensor:
    """Over the last axis. PyTorch's CPU code goes over a short last axis number by number; with that axis before
    another one it takes many rows at once, ten times as fast for 4 classes."""
    if x.is_cuda or x.dim() < 2 or x.shape[-1] >= FEW:
        return x.softmax(-1)
    return x.transpose(-1, -2).contiguous().softmax(-2).transpose(-1, -2)


def rows_of(grad: Tensor | None, like: Tensor) -> tuple[Tensor, int]:
    """A gradient as a kernel reads it, one number a row, and the step between rows: 0 for the gradient of a sum or a
    mean, which autograd gives as one number expanded, and for none at all, which is a 0 on the device of `like`."""
    if grad is None:
        return like.new_zeros((), dtype=torch.float32), 0
    if not any(grad.stride()):
        return grad, 0
    return grad.contiguous(), 1


def padded(count: int) -> int:
    """The next power of two, which Triton's blocks must have as their size."""
    return 1 << (count - 1).bit_length()
