"""Functions of CUDA tensors run as CUDA graphs: one launch from the host instead of thousands."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]


class Captured:
    """Runs a function of CUDA tensors as one CUDA graph for each set of input shapes.

    The first call with inputs of certain shapes and dtypes simply runs the function. That loads and tunes the libraries
    that a capture must not load, and as it is a real call there is nothing to undo after it. The second call records
    the graph, which executes nothing, and replays it; later ones copy their inputs into the graph's buffers and replay.

    The function must not synchronise with the host, must read and write its state (parameters, moments) in place, and
    may draw from `generator` alone: a replay goes on from the generator's state and leaves it as a plain run would, so
    that plain runs, replays, and saving and restoring the state mix freely.

    Args:
        function: positional tensors to a tuple of tensors.
        generator: the CUDA generator that it draws from.
        limit: the most graphs to keep, since each has memory of its own; other shapes run without.
    """

    def __init__(self, function: Function, generator: torch.Generator, limit: int = 2) -> None:
        self.function, self.generator, self.limit = function, generator, limit
        self._graphs: dict[tuple, _Graph | None] = {}

    @property
    def graphs(self) -> int:
        """Graphs recorded so far."""
        return sum(graph is not None for graph in self._graphs.values())

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The function's outputs; later calls leave them as they are."""
        key = tuple((x.shape, x.dtype) for x in inputs)
        if key not in self._graphs:
            if len(self._graphs) < self.limit:
                self._graphs[key] = None
            return self.function(*inputs)
        graph = self._graphs[key]
        if graph is None:
            graph = self._graphs[key] = _Graph(self.function, self.generator, inputs)
        return graph.replay(inputs)


class _Graph:
    def __init__(self, function: Function, generator: torch.Generator, inputs: tuple[Tensor, ...]) -> None:
        self.inputs = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]
        self.graph = torch.cuda.CUDAGraph()
        self.graph.register_generator_state(generator)
        # A stream of its own: cuBLAS keeps a workspace for each stream, and the one that this graph will go on using
        # is then allocated while it is recorded, out of memory that nothing else gets. "thread_local": other threads
        # may use the device meanwhile.
        stream = torch.cuda.Stream(inputs[0].device)
        with (
            torch.cuda.device(inputs[0].device),
            torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"),
        ):
            self.outputs = function(*self.inputs)

    def replay(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for buffer, value in zip(self.inputs, inputs):
            buffer.copy_(value, non_blocking=True)
        self.graph.replay()
        return tuple(output.clone() for output in self.outputs)
