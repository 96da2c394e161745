"""Which of PyTorch's attentions computes, by name."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch.nn.attention import SDPBackend, sdpa_kernel

ATTENTION = {
    "auto": None,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def attention(name: str) -> AbstractContextManager[None]:
    """Inside, PyTorch's attention is computed by the named backend and by no other; `auto` leaves it to PyTorch.

    A compiled function keeps the backend that it was first called with, unless it enters this itself.
    """
    backend = ATTENTION[name]
    return nullcontext() if backend is None else sdpa_kernel(backend)
