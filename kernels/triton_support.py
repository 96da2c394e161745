"""Whether an op can use its Triton kernel here. Importing this needs no Triton and no GPU."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

HAS_TRITON = importlib.util.find_spec("triton") is not None
# Read once, as Triton itself does when it decorates a kernel.
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"

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
    """Whether tensors on this device go through Triton: CUDA ones, and all in Triton's interpreter."""
    return HAS_TRITON and _allowed and (INTERPRETED or all(tensor.is_cuda for tensor in tensors))
