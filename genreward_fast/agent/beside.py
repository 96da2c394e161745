"""Work that runs beside other work on a GPU."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@contextmanager
def beside(*tensors: Tensor) -> Iterator[None]:
    """What is launched inside runs on a stream of its own, after all before it and beside what follows.

    Its gradients run there, too. `join` waits for it. Elsewhere than on CUDA nothing changes.

    Args:
        tensors: what it reads, at least one. Their memory is not given to anybody else while the stream may need it.
    """
    device = tensors[0].device
    if device.type != "cuda":
        yield
        return
    stream = _stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    for tensor in tensors:
        tensor.record_stream(stream)
    with torch.cuda.stream(stream):
        yield


def join(device: torch.device) -> None:
    """Lets what follows wait for all that ran `beside`."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).wait_stream(_stream(device))
