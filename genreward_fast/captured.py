"""Functions of CUDA tensors run as CUDA graphs: one launch from the host instead of thousands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]

AHEAD = -1
"""Priority of the streams that graphs are recorded on: their work goes before that of others, which have the lowest."""

_ALIGN = 16


class Captured:
    """Runs a function of CUDA tensors as one CUDA graph for each set of input shapes.

    The first call with inputs of certain shapes and dtypes simply runs the function. That loads and tunes the libraries
    that a capture must not load, and as it is a real call there is nothing to undo after it. The second call records
    the graph, which executes nothing, and replays it; later ones copy their inputs into the graph's buffers and replay.

    The function must not synchronise with the host, must read and write its state (parameters, moments) in place, and
    may draw from `generator` alone: a replay goes on from the generator's state and leaves it as a plain run would, so
    that plain runs, replays, and saving and restoring the state mix freely.

    Args:
        function: positional tensors on the device to a tuple of tensors there.
        generator: the CUDA generator that it draws from.
        limit: the most graphs to keep, since each has memory of its own; other shapes run without.
        carried: so many of the first results are of the kind of the last inputs. If they come back as these in the next
            call, one copy takes them over.
    """

    def __init__(self, function: Function, generator: torch.Generator, limit: int = 2, carried: int = 0) -> None:
        self.function, self.generator, self.limit, self.carried = function, generator, limit, carried
        self._graphs: dict[tuple, _Graph | None] = {}

    @property
    def graphs(self) -> int:
        """Graphs recorded so far."""
        return sum(graph is not None for graph in self._graphs.values())

    def forget(self) -> None:
        """Drops all graphs, whose memory is free for others then; the next call of each shape runs plainly again.

        Needed when the function's state has been replaced by other tensors. Waits for the device.
        """
        if self.graphs:
            torch.cuda.synchronize(self.generator.device)
        self._graphs.clear()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The function's outputs; later calls leave them as they are.

        Inputs may also lie in pinned host memory, from where they are copied without waiting.
        """
        key = tuple((x.shape, x.dtype) for x in inputs)
        if key not in self._graphs:
            if len(self._graphs) < self.limit:
                self._graphs[key] = None
            return self.function(*(x.to(self.generator.device, non_blocking=True) for x in inputs))
        graph = self._graphs[key]
        if graph is None:
            graph = self._graphs[key] = _Graph(self.function, self.generator, inputs, self.carried)
        return graph.replay(inputs)


class _Graph:
    def __init__(
        self, function: Function, generator: torch.Generator, inputs: tuple[Tensor, ...], carried: int = 0
    ) -> None:
        device = generator.device
        layout = Layout(inputs)
        buffer = torch.empty(layout.size, dtype=torch.uint8, device=device)
        self.inputs = layout.views(buffer)
        self.graph = torch.cuda.CUDAGraph()
        self.graph.register_generator_state(generator)
        # A stream of its own: cuBLAS keeps a workspace for each stream, and the one that this graph will go on using
        # is then allocated while it is recorded, out of memory that nothing else gets. "thread_local": other threads
        # may use the device meanwhile. A graph keeps the priorities of the streams that it was recorded on.
        stream = torch.cuda.Stream(device, priority=AHEAD)
        with (
            torch.cuda.device(device),
            torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"),
        ):
            outputs = function(*self.inputs)
            self._results = Layout(outputs)
            self._joined = self._results.join(outputs)
        self._fresh = len(inputs) - carried  # the inputs that every call brings
        self._carry = self._results.head(carried)
        self._carry_in = buffer[layout.size - self._carry :]
        self._carry_out = self._carry_in
        self._last: tuple[Tensor, ...] = ()

    def replay(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        count = len(inputs)
        if self._carry and self._last and all(a is b for a, b in zip(inputs[self._fresh :], self._last)):
            count = self._fresh
            self._carry_in.copy_(self._carry_out, non_blocking=True)
        for buffer, value in zip(self.inputs[:count], inputs):
            buffer.copy_(value, non_blocking=True)
        self.graph.replay()
        # The device is busy now: what the host does from here on takes no time.
        joined = self._joined.clone()
        self._last = self._results.views(joined)
        self._carry_out = joined[: self._carry]
        return self._last


class Layout:
    """Where tensors of certain shapes and dtypes lie one after the other in a buffer of bytes.

    Attributes:
        size: of the buffer.
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        self._kinds = [(x.dtype, x.shape) for x in like]
        self._sizes = [x.numel() * x.itemsize for x in like]
        *self._starts, self.size = accumulate((-(-size // _ALIGN) * _ALIGN for size in self._sizes), initial=0)

    def head(self, count: int) -> int:
        """Bytes that the first `count` tensors take."""
        return [*self._starts, self.size][count]

    def views(self, buffer: Tensor) -> tuple[Tensor, ...]:
        """The tensors in a buffer (size,) uint8."""
        return tuple(
            buffer[start : start + size].view(dtype).view(shape)
            for start, size, (dtype, shape) in zip(self._starts, self._sizes, self._kinds)
        )

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """A buffer with copies of the tensors, made in one launch if they are contiguous."""
        gap = torch.zeros(_ALIGN, dtype=torch.uint8, device=tensors[0].device)
        pieces = []
        for tensor, size in zip(tensors, self._sizes):
            pieces += [tensor.contiguous().view(-1).view(torch.uint8), gap[: -size % _ALIGN]]
        return torch.cat([piece for piece in pieces if len(piece)])
