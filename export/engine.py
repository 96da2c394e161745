"""What an engine is: a callable made from a module, the manifest that describes it, and what a backend must offer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from genreward_fast.errors import UserError

# Vectorised loads in compiled kernels need 16-byte aligned inputs.
_ALIGNMENT = 16


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of an engine.

    Attributes:
        shape: sizes; at `dynamic_axis` the size of the example that the engine was built with.
        dtype: as PyTorch names it without the prefix, "float32" or "uint8".
        dynamic_axis: the axis whose size may differ from call to call (always the batch, axis 0); None if fixed.
    """

    shape: tuple[int, ...]
    dtype: str
    dynamic_axis: int | None

    @classmethod
    def of(cls, tensor: Tensor, dynamic_axis: int | None) -> TensorSpec:
        return cls(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), dynamic_axis)

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def with_batch(self, batch: int) -> tuple[int, ...]:
        """The shape for a call with this batch size."""
        return tuple(batch if axis == self.dynamic_axis else size for axis, size in enumerate(self.shape))

    def fits(self, tensor: Tensor) -> bool:
        """Whether the tensor has this dtype and, apart from the dynamic axis, this shape."""
        if tensor.dtype != self.torch_dtype or tensor.dim() != len(self.shape):
            return False
        return all(
            axis == self.dynamic_axis or size == wanted
            for axis, (size, wanted) in enumerate(zip(tensor.shape, self.shape))
        )

    def __str__(self) -> str:
        sizes = ["batch" if axis == self.dynamic_axis else str(size) for axis, size in enumerate(self.shape)]
        return f"({', '.join(sizes)}) {self.dtype}"


@dataclass(frozen=True)
class Manifest:
    """What stands in an engine file beside the payload.

    Attributes:
        backend: name of the backend that built it.
        backend_version: version of the library that runs it; another version is refused.
        weights_sha256: `weights_sha256` of the module it was built from.
        payload_sha256: sha256 of the payload's bytes, in hexadecimal.
        compute_capability: "sm_90" and the like, or "cpu"; another one is refused.
        cpu_features: architecture and vector instructions that its host code may use, empty if it brings none; a
            CPU that lacks one is refused.
        inputs, output: shapes and dtypes.
        max_batch: the largest size of the dynamic axis; None if the batch is fixed.
        fidelity: relative RMS error of its output against the module's, measured when built (the largest over the
            batch sizes tried); None if it was built for a GPU that was not there, so that it could not run.
        onnx_sha256: of the ONNX graph that it was built from, in hexadecimal; None if there was none.
        onnx_fidelity: where `fidelity` could not be measured, the error of the ONNX graph, run on the CPU in float32;
            else None.
        torch_version, gpu_name, driver, cuda: where it was built; recorded, not compared. None without a GPU.
    """

    backend: str
    backend_version: str
    weights_sha256: str
    payload_sha256: str
    compute_capability: str
    cpu_features: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    max_batch: int | None
    fidelity: float | None
    torch_version: str
    gpu_name: str | None
    driver: str | None
    cuda: str | None
    onnx_sha256: str | None = None
    onnx_fidelity: float | None = None


@runtime_checkable
class Engine(Protocol):
    """A loaded engine. `name` is its backend's; `__call__` takes the manifest's inputs and returns its output."""

    @property
    def name(self) -> str: ...

    @property
    def manifest(self) -> Manifest: ...

    def __call__(self, *tensors: Tensor) -> Tensor: ...


class Backend(Protocol):
    """Turns modules into payloads and payloads into engines. `backends.py` adds the file, its checks and the fidelity.

    Attributes:
        name: as on the command line.
        suffix: of a payload's file name, with the dot.
        has_host_code: whether a payload holds machine code for the CPU that built it.
    """

    name: str
    suffix: str
    has_host_code: bool

    def targeting(self, compute_capability: str) -> Backend:
        """This backend, building for a GPU that is not in the machine ("sm_89"). UserError if it cannot."""
        ...

    def version(self) -> str:
        """Version of the library that runs a payload. UserError if that is not installed."""
        ...

    def why_unavailable(self) -> str | None:
        """None if `build` can work on this machine, otherwise what is missing and how to install it."""
        ...

    def build(
        self,
        module: torch.nn.Module,
        example_inputs: tuple[Tensor, ...],
        path: Path,
        dynamic_batch: bool = True,
        max_batch: int = 1024,
    ) -> None:
        """Writes the payload to `path`. Raises UserError, or whatever the library raises.

        A backend that goes through ONNX leaves the graph at `path` with the suffix .onnx.
        """
        ...

    def load(self, path: Path, manifest: Manifest, device: torch.device) -> Engine:
        """Loads the payload at `path`, which the caller deletes afterwards."""
        ...


@dataclass(frozen=True)
class CheckedEngine:
    """An engine that looks at its inputs before it runs them: compiled code reads past a tensor that is too small.

    Attributes:
        run: gets contiguous, aligned tensors that fit the manifest, and returns the output.
    """

    name: str
    manifest: Manifest
    device: torch.device
    run: Callable[..., Tensor]

    def __call__(self, *tensors: Tensor) -> Tensor:
        """The module's output, computed without gradients on `device`. Inputs that are not contiguous are copied.

        Raises:
            UserError: the number of inputs, a shape, a dtype, a device or the batch size is not the manifest's.
        """
        self._check(tensors)
        with torch.no_grad():
            return self.run(*(_aligned(tensor) for tensor in tensors))

    def _check(self, tensors: Sequence[Tensor]) -> None:
        specs = self.manifest.inputs
        if len(tensors) != len(specs):
            raise UserError(f"this {self.name} engine takes {len(specs)} inputs, not {len(tensors)}")
        for index, (tensor, spec) in enumerate(zip(tensors, specs)):
            given = f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
            if not spec.fits(tensor) or tensor.device != self.device:
                raise UserError(
                    f"input {index} of this {self.name} engine is {spec} on {self.device}, not {given}; "
                    "build an engine for that input"
                )
        if self.manifest.max_batch is not None:
            batches = {tensor.shape[0] for tensor in tensors}
            if len(batches) != 1 or not 1 <= min(batches) <= self.manifest.max_batch:
                raise UserError(
                    f"this {self.name} engine takes one batch size from 1 to {self.manifest.max_batch}, "
                    f"not {sorted(batches)}; split the batch, or build with a larger max_batch"
                )


def _aligned(tensor: Tensor) -> Tensor:
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % _ALIGNMENT else tensor
