"""Calls of an encoder as CUDA graphs: one launch from the host instead of hundreds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, cuda

from genreward_fast.partition import partition_of, sibling


class Graphed:
    """Runs a function of tensors as a CUDA graph for each set of input shapes and dtypes.

    There is a graph for each part of a GPU that calls come from, too (`Partition`).

    Inputs of certain shapes run plainly when they come for the first time: many, like a goal's clip, never come again,
    and a graph keeps the memory of its intermediate results. The second time the graph is recorded, which waits for the
    device; from then on a call is two copies and a replay in the caller's current stream, and never waits. On other
    devices, while the caller records a graph of its own, and while a compiler traces, the function simply runs.

    Calls may come in several streams, of one thread at a time: each waits, on the device, for the one before it, since
    all graphs compute in the same memory. What the function reads beside its inputs (weights) is read where it lay at
    the recording: after moving it, call `forget`.

    Args:
        function: tensors on one device to a tensor there, without gradients; must not synchronise with the host.
        may_record: asked at each call; while it says no, the function simply runs.
        limit: the most shapes to remember; the one that was not used for the longest time is forgotten.
    """

    def __init__(
        self, function: Callable[..., Tensor], may_record: Callable[[], bool] = lambda: True, limit: int = 4
    ) -> None:
        self.function, self.may_record, self.limit = function, may_record, limit
        self._recordings: OrderedDict[tuple, _Recording | None] = OrderedDict()
        self._done: cuda.Event | None = None

    @property
    def graphs(self) -> int:
        """How many graphs are kept."""
        return sum(recording is not None for recording in self._recordings.values())

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The function's output; later calls leave it as it is."""
        if not (_can_record(inputs) and self.may_record()):
            return self.function(*inputs)
        stream = cuda.current_stream(inputs[0].device)
        key = (partition_of(stream), *((x.device, x.shape, x.dtype) for x in inputs))
        if key not in self._recordings:
            self._recordings[key] = None
            if len(self._recordings) > self.limit:
                self._drop(next(iter(self._recordings)))
            return self.function(*inputs)
        self._recordings.move_to_end(key)
        if self._done is None:
            self._done = cuda.Event()
        self._done.wait(stream)
        recording = self._recordings[key]
        if recording is None:
            pools = [kept.graph.pool() for kept in self._recordings.values() if kept is not None]
            recording = self._recordings[key] = _Recording(self.function, inputs, pools[0] if pools else None)
        output = recording.replay(inputs)
        self._done.record(stream)
        return output

    def forget(self) -> None:
        """Drops all graphs; the next calls record them anew."""
        while self._recordings:
            self._drop(next(iter(self._recordings)))

    def _drop(self, key: tuple) -> None:
        if self._recordings[key] is not None:
            cuda.synchronize(key[1][0])  # its memory may be in use by a stream that the allocator does not know of
        del self._recordings[key]


class _Recording:
    """A graph with the buffers that it reads and writes."""

    def __init__(self, function: Callable[..., Tensor], inputs: Sequence[Tensor], pool: Any) -> None:
        device = inputs[0].device
        self.inputs = [torch.empty(x.shape, dtype=x.dtype, device=device) for x in inputs]
        for buffer, value in zip(self.inputs, inputs):
            buffer.copy_(value)
        # cuDNN keeps its choices for each thread, and the earlier call may have come from another one.
        side = sibling(cuda.current_stream(device))
        side.wait_stream(cuda.current_stream(device))
        with cuda.stream(side):
            function(*self.inputs)
        cuda.current_stream(device).wait_stream(side)
        self.graph = cuda.CUDAGraph()
        # A stream of its own: cuBLAS keeps a workspace for each, and the one that this graph goes on using is then
        # allocated while it is recorded. "thread_local": other threads may use the device meanwhile. What is recorded
        # runs on the stream's multiprocessors, wherever the graph is launched.
        stream = sibling(cuda.current_stream(device))
        with (
            cuda.device(device),
            cuda.graph(self.graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
        ):
            self.output = function(*self.inputs)

    def replay(self, inputs: Sequence[Tensor]) -> Tensor:
        for buffer, value in zip(self.inputs, inputs):
            buffer.copy_(value, non_blocking=True)
        self.graph.replay()
        return self.output.clone()


def _can_record(inputs: Sequence[Tensor]) -> bool:
    return inputs[0].is_cuda and not torch.compiler.is_compiling() and not cuda.is_current_stream_capturing()
