"""Work that runs beside other work on a GPU."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from genreward_fast.partition import SMALLEST, Partition, Unavailable

_STREAMS: dict[tuple[str, torch.device], torch.cuda.Stream] = {}


def _stream(name: str, device: torch.device) -> torch.cuda.Stream:
    if (name, device) not in _STREAMS:
        # Losses on several streams share parameters: where their gradients meet, one stream waits for the other, and
        # there is nothing to warn of.
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        _STREAMS[name, device] = torch.cuda.Stream(device)
    return _STREAMS[name, device]


def confine(name: str, device: torch.device, multiprocessors: int | None) -> str:
    """Lets the stream of this name run on so many of a GPU's multiprocessors from now on, 0 for all of them.

    Args:
        multiprocessors: None for three tenths of those there are.

    Returns:
        Why it cannot be (the stream runs on all of them then), or "".
    """
    if device.type != "cuda":
        return ""
    join(name, device)
    if multiprocessors is None:
        whole = torch.cuda.get_device_properties(device).multi_processor_count
        multiprocessors = SMALLEST * round(0.3 * whole / SMALLEST)
    try:
        _STREAMS[name, device] = _confined(name, device, multiprocessors)
    except Unavailable as error:
        _STREAMS[name, device] = _confined(name, device, 0)
        return str(error)
    return ""


@functools.cache
def _confined(name: str, device: torch.device, multiprocessors: int) -> torch.cuda.Stream:
    return Partition(device, multiprocessors).stream() if multiprocessors else torch.cuda.Stream(device)


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
