"""What PyTorch may do with float32 products on CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact_products() -> Iterator[None]:
    """Inside it, float32 products and convolutions on CUDA run without TF32, which PyTorch allows cuDNN unless told.

    The setting is the process's; other threads see it meanwhile. A CUDA graph recorded inside keeps to it.
    """
    with _tf32(False):
        yield


@contextmanager
def tf32_products() -> Iterator[None]:
    """Inside it, float32 products and convolutions on CUDA may round their factors to TF32 (10 bits, sums in float32).

    The setting is the process's, as with `exact_products`, which may stand inside.
    """
    with _tf32(True):
        yield


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
