"""Work that runs beside other work on a GPU."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@functools.cache
def _stream(name: str, device: torch.device) -> torch.cuda.Stream:
    # Losses on several streams share parameters: where their gradients meet, one stream waits for the other, and there
    # is nothing to warn of.
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
    return torch.cuda.Stream(device)


@contextmanager
def beside(name: str, *tensors: Tensor) -> Iterator[None]:
    """What is launched inside runs on the stream of this name, after all before it and beside what follows.

    `join` waits for it. Elsewhere than on CUDA nothing changes.

    Args:
        tensors: what it reads of others, at least one. Their memory is not given to anybody else while the stream may
            need it.
    """
    device = tensors[0].device
    if device.type == "cuda":
        stream = _stream(name, device)
        stream.wait_stream(torch.cuda.current_stream(device))
        for tensor in tensors:
            tensor.record_stream(stream)
    with resumed(name, device):
        yield


@contextmanager
def resumed(name: str, device: torch.device) -> Iterator[None]:
    """Like `beside`, but waits for nothing that has been launched elsewhere since."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.stream(_stream(name, device)):
        yield


def join(name: str, device: torch.device) -> None:
    """Lets what follows wait for all that ran on the stream of this name."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).wait_stream(_stream(name, device))
