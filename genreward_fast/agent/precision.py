"""What PyTorch may do with convolutions and products on CUDA while the agent computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from genreward_fast.kernels.precision import exact_products


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
