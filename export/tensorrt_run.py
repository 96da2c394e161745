"""Running a TensorRT plan on PyTorch's tensors, streams and memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genreward_fast.errors import UserError
from genreward_fast.export.engine import Manifest
from genreward_fast.export.tensorrt_cache import KernelCache

Shapes = tuple[tuple[int, ...], ...]


class TensorRTRun:
    """A plan as a callable, for `CheckedEngine`. The host never waits, except while a new shape is prepared.

    An execution context keeps state between calls and belongs to one stream at a time, so each stream gets one of its
    own. A capture cannot prepare anything: it takes over a context that has run with these shapes before, and keeps
    it, since the graph refers to it. Graphs captured on one stream with the same shapes share theirs: do not replay
    such graphs at the same time. Scratch memory is PyTorch's, so a graph has its own.
    """

    def __init__(self, trt: Any, plan: bytes, manifest: Manifest, device: torch.device) -> None:
        """
        Args:
            trt: the module `tensorrt` or `tensorrt_rtx`.

        Raises:
            UserError: the plan is not for this GPU or version, or is not what the manifest says.
        """
        self._trt, self._manifest, self._device = trt, manifest, device
        with torch.cuda.device(device):
            self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                raise UserError("TensorRT does not accept the plan on this GPU")
            self._inputs, self._output = self._names()
            self._config = self._engine.create_runtime_config()
            self._config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
            if hasattr(self._config, "dynamic_shapes_kernel_specialization_strategy"):
                # Kernels that change once a better one is compiled would change numbers in the middle of a run.
                eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
                self._config.dynamic_shapes_kernel_specialization_strategy = eager
            self._cache = KernelCache(self._config, manifest)
            self._side = torch.cuda.Stream(device)
        self._contexts: dict[int, _Context] = {}  # by stream
        self._captured: dict[tuple[int, Shapes], _Context] = {}
        self._compiled: set[Shapes] = set()

    def __call__(self, *tensors: Tensor) -> Tensor:
        """Inputs that fit the manifest to its output, on the current stream.

        Raises:
            UserError: a capture with shapes that have not run before, or TensorRT fails.
        """
        with torch.cuda.device(self._device):
            batch = tensors[0].shape[0] if self._manifest.max_batch is not None else 0
            spec = self._manifest.output
            output = torch.empty(spec.with_batch(batch), dtype=spec.torch_dtype, device=self._device)
            current = torch.cuda.current_stream(self._device)
            if current.cuda_stream != 0:
                self._enqueue(tensors, output, current)
                return output
            # TensorRT synchronises the device if it is given the default stream. That stream waits for the side one
            # before it goes on, so what is freed after this call is not used again too early.
            self._side.wait_stream(current)
            with torch.cuda.stream(self._side):
                self._enqueue(tensors, output, self._side)
            current.wait_stream(self._side)
            return output

    def _enqueue(self, tensors: tuple[Tensor, ...], output: Tensor, stream: torch.cuda.Stream) -> None:
        shapes = tuple(tuple(tensor.shape) for tensor in tensors)
        handle = stream.cuda_stream
        if torch.cuda.is_current_stream_capturing():
            context = self._context_for_graph(handle, shapes)
        else:
            context = self._contexts.get(handle) or self._new_context(handle)
        for name, tensor in zip(self._inputs, tensors):
            context.do("set_input_shape", name, tuple(tensor.shape))
            context.do("set_tensor_address", name, tensor.data_ptr())
        context.do("set_tensor_address", self._output, output.data_ptr())
        size = context.trt.update_device_memory_size_for_shapes()
        scratch = torch.empty(max(size, 1), dtype=torch.uint8, device=self._device)
        context.trt.set_device_memory(scratch.data_ptr(), size)
        context.do("execute_async_v3", handle)
        context.shapes = shapes
        if shapes not in self._compiled:
            self._compiled.add(shapes)
            self._cache.save()

    def _new_context(self, handle: int) -> _Context:
        made = self._engine.create_execution_context(self._config)
        if made is None:
            raise UserError("TensorRT cannot make an execution context; the GPU's memory may be full")
        self._contexts[handle] = _Context(made)
        return self._contexts[handle]

    def _context_for_graph(self, handle: int, shapes: Shapes) -> _Context:
        key = handle, shapes
        if key not in self._captured:
            owner = next((owner for owner, context in self._contexts.items() if context.shapes == shapes), None)
            if owner is None:
                raise UserError(f"call the engine once with shapes {shapes} before they are captured in a CUDA graph")
            self._captured[key] = self._contexts.pop(owner)
        return self._captured[key]

    def _names(self) -> tuple[list[str], str]:
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        mode = self._trt.TensorIOMode
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == mode.INPUT]
        outputs = [name for name in names if self._engine.get_tensor_mode(name) == mode.OUTPUT]
        if len(inputs) != len(self._manifest.inputs) or len(outputs) != 1:
            raise UserError(
                f"the plan has {len(inputs)} inputs and {len(outputs)} outputs where {len(self._manifest.inputs)} and "
                "1 are needed: every input must reach the output"
            )
        return inputs, outputs[0]


class _Context:
    """An execution context.

    Attributes:
        trt: the library's IExecutionContext.
        shapes: of its last call, for which nothing is left to be compiled or allocated.
    """

    def __init__(self, trt: Any) -> None:
        self.trt = trt
        self.shapes: Shapes | None = None

    def do(self, method: str, *arguments: Any) -> None:
        """Calls a method that returns whether it worked."""
        if not getattr(self.trt, method)(*arguments):
            raise UserError(f"TensorRT failed in {method}{arguments}")
