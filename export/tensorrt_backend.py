"""TensorRT for NVIDIA's GPUs, and TensorRT for RTX: two libraries with one interface, so one backend for both."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genreward_fast.errors import UserError, first_line
from genreward_fast.export.engine import CheckedEngine, Engine, Manifest
from genreward_fast.export.machine import compute_capability
from genreward_fast.export.onnx_graph import write_onnx
from genreward_fast.export.tensorrt_plan import Profile, serialized_plan, target_capability
from genreward_fast.export.tensorrt_run import TensorRTRun


class TensorRTBackend:
    """ONNX, compiled by TensorRT into a strongly typed plan: every tensor keeps the dtype that it has in the module.

    Bytes as inputs must be converted before anything else is done with them. A loaded engine runs on the current CUDA
    stream without the host ever waiting, and may be captured in a CUDA graph after a call with the same shapes; it is
    to be called by one thread at a time. TensorRT for RTX needs no GPU to build.

    Attributes:
        library: the Python module, `tensorrt` or `tensorrt_rtx`.
        target: compute capability of a GPU that is not in the machine; None for that of the inputs' device.
    """

    suffix = ".plan"
    has_host_code = False

    def __init__(self, name: str, library: str, target: str | None = None) -> None:
        self.name = name
        self.library = library
        self.target = target

    def targeting(self, compute_capability: str) -> TensorRTBackend:
        target_capability(self._import(), self.name, compute_capability)
        return TensorRTBackend(self.name, self.library, compute_capability)

    def version(self) -> str:
        return self._import().__version__

    def why_unavailable(self) -> str | None:
        missing = [name for name in (self.library, "onnx", "onnxscript") if importlib.util.find_spec(name) is None]
        if missing:
            return f"{', '.join(missing)} not installed; {self._install}"
        try:
            trt = self._import()
        except UserError as error:
            return str(error)
        if not hasattr(trt, "ComputeCapability") and not torch.cuda.is_available():
            return f"{self.name} builds for the GPU in the machine, and PyTorch sees none; tensorrt-rtx needs none"
        return None

    def build(
        self,
        module: torch.nn.Module,
        example_inputs: tuple[Tensor, ...],
        path: Path,
        dynamic_batch: bool = True,
        max_batch: int = 1024,
    ) -> None:
        """Compiles for batches from 1 to `max_batch`, best for that of the example."""
        trt = self._import()
        target = self.target or compute_capability(example_inputs[0].device)
        if target == "cpu":
            raise UserError(f"{self.name} has no engines for CPUs; move the module to CUDA, or name a GPU (sm_89)")
        capability = target_capability(trt, self.name, target) if hasattr(trt, "ComputeCapability") else None
        graph = path.with_suffix(".onnx")
        write_onnx(module, example_inputs, graph, dynamic_batch, max_batch)
        profile = Profile(example_inputs[0].shape[0], max_batch) if dynamic_batch else None
        path.write_bytes(serialized_plan(trt, graph, profile, capability))

    def load(self, path: Path, manifest: Manifest, device: torch.device) -> Engine:
        run = TensorRTRun(self._import(), path.read_bytes(), manifest, device)
        return CheckedEngine(self.name, manifest, device, run)

    @property
    def _install(self) -> str:
        return f"pip install 'genreward-fast[{self.name}]'"

    def _import(self) -> Any:
        try:
            return importlib.import_module(self.library)
        except Exception as error:  # a package without its libraries raises what it likes
            raise UserError(f"{self.library} cannot be imported ({first_line(error)}); {self._install}") from None
