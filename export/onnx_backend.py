"""ONNX Runtime: an ONNX graph, run by `onnxruntime` on the CPU or, with onnxruntime-gpu, on CUDA."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from genreward_fast.errors import UserError
from genreward_fast.export.engine import CheckedEngine, Engine, Manifest
from genreward_fast.export.onnx_graph import weights_file, write_onnx

_INSTALL = "pip install 'genreward-fast[onnxruntime]' (or pip install onnx onnxscript onnxruntime)"
# onnx.TensorProto's numbers, written out because running an engine needs onnxruntime alone.
_ELEMENT_TYPES = {
    torch.float32: 1,
    torch.uint8: 2,
    torch.int8: 3,
    torch.int32: 6,
    torch.int64: 7,
    torch.bool: 9,
    torch.float16: 10,
    torch.float64: 11,
    torch.bfloat16: 16,
}


class OnnxRuntimeBackend:
    """`torch.onnx.export` + `onnxruntime.InferenceSession`. Weights lie in the graph, so a module is below 2 GiB."""

    name = "onnxruntime"
    suffix = ".onnx"
    has_host_code = False

    def targeting(self, compute_capability: str) -> OnnxRuntimeBackend:
        """Itself: a graph is the same for every GPU."""
        return self

    def version(self) -> str:
        return _onnxruntime().__version__

    def why_unavailable(self) -> str | None:
        missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
        return f"{', '.join(missing)} not installed; {_INSTALL}" if missing else None

    def build(
        self,
        module: torch.nn.Module,
        example_inputs: tuple[Tensor, ...],
        path: Path,
        dynamic_batch: bool = True,
        max_batch: int = 1024,
    ) -> None:
        write_onnx(module, example_inputs, path, dynamic_batch, max_batch)
        if weights_file(path).exists():
            raise UserError("its weights are above 2 GiB, which an ONNX file cannot hold; use another backend")

    def load(self, path: Path, manifest: Manifest, device: torch.device) -> Engine:
        onnxruntime = _onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(path), options, providers=_providers(onnxruntime, device))
        names = [node.name for node in session.get_inputs()]
        if len(names) != len(manifest.inputs) or len(session.get_outputs()) != 1:
            raise UserError(
                f"the ONNX graph has {len(names)} inputs and {len(session.get_outputs())} outputs where "
                f"{len(manifest.inputs)} and 1 are needed: every input must reach the output"
            )
        output_name = session.get_outputs()[0].name

        def run(*tensors: Tensor) -> Tensor:
            batch = tensors[0].shape[0] if manifest.max_batch is not None else 0
            output = torch.empty(manifest.output.with_batch(batch), dtype=manifest.output.torch_dtype, device=device)
            binding = session.io_binding()
            for name, tensor in zip(names, tensors):
                binding.bind_input(name, *_buffer(tensor))
            binding.bind_output(output_name, *_buffer(output))
            if device.type == "cuda":
                # The session has a stream of its own; its run returns when that one is done.
                torch.cuda.current_stream(device).synchronize()
            session.run_with_iobinding(binding)
            return output

        return CheckedEngine(self.name, manifest, device, run)


def _onnxruntime():
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"onnxruntime is not installed; {_INSTALL}") from None
    return onnxruntime


def _providers(onnxruntime, device: torch.device) -> list:
    if device.type == "cpu":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise UserError("this onnxruntime has no CUDA provider; pip uninstall onnxruntime, pip install onnxruntime-gpu")
    # TensorFloat-32 would cost three digits of a float32 module.
    return [("CUDAExecutionProvider", {"device_id": device.index, "use_tf32": "0"}), "CPUExecutionProvider"]


def _buffer(tensor: Tensor) -> tuple[str, int, int, list[int], int]:
    """Device, device index, element type, shape and address, as an I/O binding takes them: nothing is copied."""
    element = _ELEMENT_TYPES[tensor.dtype]
    return tensor.device.type, tensor.device.index or 0, element, list(tensor.shape), tensor.data_ptr()
