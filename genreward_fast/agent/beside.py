"""Work that runs beside other work on a GPU."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@contextmanager
def beside(device: torch.device) -> Iterator[None]:
    """What is launched inside runs on a stream of its own, after all before it and beside what follows.

    Its gradients run there, too. `join` waits for it. What it reads must live until then, which autograd sees to for
    what gradients need. Elsewhere than on CUDA nothing changes.
    """
    if device.type != "cuda":
        yield
        return
    stream = _stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield


def join(device: torch.device) -> None:
    """Lets what follows wait for all that ran `beside`."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).wait_stream(_stream(device))
