"""What PyTorch may do with convolutions and products on CUDA while the agent computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def exact_products() -> Iterator[None]:
    """Inside it, float32 products and convolutions on CUDA run without TF32, which PyTorch allows cuDNN unless told.

    The setting is the process's; other threads see it meanwhile. A CUDA graph recorded inside keeps to it.
    """
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextmanager
def reproducible(exact: bool) -> Iterator[None]:
    """Inside it cuDNN takes algorithms that give the same bits every time; it costs nothing measurable.

    Args:
        exact: without TF32, too (`exact_products`).
    """
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        with exact_products() if exact else nullcontext():
            yield
    finally:
        torch.backends.cudnn.deterministic = before
