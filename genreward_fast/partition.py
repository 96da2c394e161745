"""Streams whose work runs on a fixed part of a GPU's multiprocessors.

Kernels that fill a GPU for milliseconds each make everything beside them wait, whatever its priority: a block gives its
place back when it is done, not before. On a part of the multiprocessors they take longer and leave the others free.

The driver calls such a part a green context (CUDA driver API, section "Green Contexts", from 12.4 on).
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch

_SM_RESOURCE = 1
_DEFAULT_STREAM = _NON_BLOCKING = 1
# A `CUdevResource` has 144 bytes in CUDA 12; later ones are longer. Only one is kept in each buffer.
_RESOURCE_BYTES = 1024
_SM_COUNT_AT = 96
SMALLEST = 8
"""Multiprocessors in a part are a multiple of these on GPUs of compute capability 9.0 and later."""


class Unavailable(Exception):
    """The driver cannot divide this GPU; says why."""


class Partition:
    """A part of a GPU's multiprocessors, for streams of its own.

    It lasts as long as the process: streams and graphs that were made in it may.

    Attributes:
        device: the GPU.
        multiprocessors: how many it has: those asked for, rounded up to what the GPU can divide.
    """

    def __init__(self, device: torch.device, multiprocessors: int) -> None:
        """
        Raises:
            Unavailable: there is no such driver, or the GPU has too few multiprocessors.
        """
        torch.empty(0, device=device)  # makes the context
        self.device = device
        handle = ctypes.c_int()
        _call("cuDeviceGet", ctypes.byref(handle), device.index)
        whole, part, rest = (ctypes.create_string_buffer(_RESOURCE_BYTES) for _ in range(3))
        _call("cuDeviceGetDevResource", handle, whole, _SM_RESOURCE)
        groups = ctypes.c_uint(1)
        _call("cuDevSmResourceSplitByCount", part, ctypes.byref(groups), whole, rest, 0, multiprocessors)
        if groups.value != 1:
            raise Unavailable(f"{device} cannot be divided into {multiprocessors} multiprocessors and the rest")
        self.multiprocessors = ctypes.c_uint.from_buffer(part, _SM_COUNT_AT).value
        description = ctypes.c_void_p()
        _call("cuDevResourceGenerateDesc", ctypes.byref(description), part, 1)
        self._context = ctypes.c_void_p()
        _call("cuGreenCtxCreate", ctypes.byref(self._context), description, handle, _DEFAULT_STREAM)

    def stream(self) -> torch.cuda.Stream:
        """A new stream, whose kernels run on this part alone."""
        handle = ctypes.c_void_p()
        _call("cuGreenCtxStreamCreate", ctypes.byref(handle), self._context, _NON_BLOCKING, 0)
        stream = torch.cuda.ExternalStream(handle.value, device=self.device)
        _PARTITIONS[stream.cuda_stream] = self
        return stream


_PARTITIONS: dict[int, Partition] = {}  # by their streams' handles


def partition_of(stream: torch.cuda.Stream) -> Partition | None:
    """The part that the stream runs on; None if it is the whole GPU."""
    return _PARTITIONS.get(stream.cuda_stream)


def sibling(stream: torch.cuda.Stream) -> torch.cuda.Stream:
    """A new stream on the same multiprocessors as this one: a graph that is recorded on it runs there."""
    partition = partition_of(stream)
    return torch.cuda.Stream(stream.device) if partition is None else partition.stream()


@functools.cache
def _driver() -> Any:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise Unavailable(f"no CUDA driver: {error}") from None


def _call(name: str, *arguments: Any) -> None:
    function = getattr(_driver(), name, None)
    if function is None:
        raise Unavailable(f"the CUDA driver has no {name}; 12.4 or later is needed")
    if code := function(*arguments):
        raise Unavailable(f"{name}: CUDA error {code}")
