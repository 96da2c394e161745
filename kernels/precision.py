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
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
