"""Choosing the device, and saying clearly when it is not there."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from genreward_fast.errors import UserError

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h


def resolve_device(name: str) -> torch.device:
    """ "auto" is the first CUDA device if there is one, else the CPU.

    Raises:
        UserError: the name is no device, or CUDA or that GPU is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: not a device; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: only cpu and cuda are supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                f"--device {name}: PyTorch sees no CUDA GPU here; use --device cpu, or see genreward doctor"
            )
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise UserError(f"--device {name}: there are only {torch.cuda.device_count()} GPUs (cuda:0 and up)")
    return device


def describe_device(device: torch.device) -> str:
    """The GPU's name, or the number of CPU threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def keep_host_memory() -> None:
    """Lets the C library keep freed memory for the next use.

    An update on the CPU frees and allocates the same large tensors again and again. By default each allocation from
    32 MiB on is mapped anew, and the system clears every page of it on its first use: a tenth of the update's time.
    Where the C library has no such settings nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # not glibc
        return
    for setting, value in ((_TRIM_THRESHOLD, 2**31 - 1), (_MMAP_THRESHOLD, 2**30), (_TOP_PAD, 2**26)):
        mallopt(setting, value)


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """In here, what is computed on a CPU is computed by one thread.

    Small work beside the environments' workers is soonest done so: of several threads, each waits at the end of every
    operation until the last one has had its turn on a core.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
