"""AOTInductor: PyTorch's own compiler, ahead of time, for CPUs and every GPU that PyTorch runs on."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import shutil
from pathlib import Path

import torch
from torch import Tensor

from genreward_fast.errors import UserError
from genreward_fast.export.engine import CheckedEngine, Engine, Manifest
from genreward_fast.export.program import export_program


class AOTInductorBackend:
    """`torch.export` + `torch._inductor.aoti_compile_and_package`. Building needs a C++ compiler, loading does not.

    A loaded engine runs on the current CUDA stream, may be captured in a CUDA graph, and is to be called by one thread
    at a time.
    """

    name = "aotinductor"
    suffix = ".pt2"
    has_host_code = True

    def targeting(self, compute_capability: str) -> AOTInductorBackend:
        raise UserError(
            f"aotinductor compiles for the device of the inputs, which is not {compute_capability}; build on that GPU, "
            "or use tensorrt-rtx"
        )

    def version(self) -> str:
        return torch.__version__

    def why_unavailable(self) -> str | None:
        compiler = (shlex.split(os.environ.get("CXX", "")) or ["g++"])[0]
        if shutil.which(compiler) is None:
            return f"it needs a C++ compiler and {compiler} is not here; install one (apt-get install g++) or set CXX"
        return None

    def build(
        self,
        module: torch.nn.Module,
        example_inputs: tuple[Tensor, ...],
        path: Path,
        dynamic_batch: bool = True,
        max_batch: int = 1024,
    ) -> None:
        """Compiles for the device of the inputs. Half a minute for a small module, minutes for a large one."""
        program = export_program(module, example_inputs, dynamic_batch, max_batch)
        with torch.no_grad():
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))

    def load(self, path: Path, manifest: Manifest, device: torch.device) -> Engine:
        # Seen with torch 2.11 on a machine with its own gcc: a package crashes in std::regex while it is loaded, unless
        # the symbols of the system's C++ library are global.
        with contextlib.suppress(OSError):
            ctypes.CDLL("libstdc++.so.6", mode=ctypes.RTLD_GLOBAL)
        index = device.index if device.type == "cuda" else -1
        # Without its own locks between threads, so that a CUDA graph can be captured.
        model = torch._inductor.aoti_load_package(str(path), run_single_threaded=True, device_index=index)
        return CheckedEngine(self.name, manifest, device, model)
