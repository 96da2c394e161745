"""A residual sum, its mean over pairs of frames, and the padding of the convolution that halves the picture."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def time_pool_reference(x: Tensor, shift: Tensor | None, residual: Tensor | None, pairs: bool) -> Tensor:
    """What `time_pool` computes, in plain PyTorch with float32 inside."""
    total = x.float()
    for term in (shift, residual):
        total = total if term is None else total + term.float()
    if pairs:
        first, rest = total[:, : total.shape[1] % 2], total[:, total.shape[1] % 2 :]
        rest = (rest[:, ::2] + rest[:, 1::2]).div_(2)
        total = torch.cat([first, rest], 1) if first.shape[1] else rest
    return functional.pad(total.to(x.dtype), (0, 0, 0, 1, 0, 1))
