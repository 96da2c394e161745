"""What can be said about an engine for a GPU that is not here: how near its ONNX graph is to the module."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor

from genreward_fast.errors import UserError
from genreward_fast.export.fidelity import HALF, Case, relative_rms_error

_INSTALL = "pip install 'genreward-fast[onnxruntime]'"


def onnx_error(path: Path, module: torch.nn.Module, cases: list[Case]) -> float:
    """Largest relative RMS error of the ONNX file's output, run on the CPU, against the module's in `cases`.

    Half precision is computed anew in float32 on both sides, as ONNX Runtime has few kernels for it on CPUs. So this
    shows a wrong graph or wrong weights. Of rounding it sees no more than that of the constants in the graph.

    Raises:
        UserError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"onnxruntime, which checks engines for other GPUs, is not installed; {_INSTALL}") from None
    if any(tensor.dtype in HALF for tensor in (*module.parameters(), *module.buffers(), *cases[0][0])):
        path, cases = _widened_graph(path), _widened_cases(module, cases)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    errors = []
    for inputs, expected in cases:
        (output,) = session.run(None, {name: tensor.cpu().numpy() for name, tensor in zip(names, inputs)})
        errors.append(relative_rms_error(torch.from_numpy(output), expected.cpu()))
    return max(errors)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in HALF else tensor


def _widened_cases(module: torch.nn.Module, cases: list[Case]) -> list[Case]:
    """The same inputs, and what a copy of the module makes of them in float32 on the CPU."""
    wide = deepcopy(module).cpu()
    for tensor in (*wide.parameters(), *wide.buffers()):
        tensor.data = _widened(tensor.data)
    given = [tuple(_widened(tensor.cpu()) for tensor in inputs) for inputs, _ in cases]
    with torch.no_grad():
        return [(inputs, wide(*inputs)) for inputs in given]


def _widened_graph(path: Path) -> Path:
    """The graph with float32 in place of float16 and bfloat16, in a file beside it."""
    import onnx

    half = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)

    def widen(tensor: onnx.TensorProto) -> None:
        if tensor.data_type in half:
            array = onnx.numpy_helper.to_array(tensor).astype("float32")
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))

    model = onnx.load(path)
    for tensor in model.graph.initializer:
        widen(tensor)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type in half:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for attribute in (attribute for node in model.graph.node for attribute in node.attribute):
        if attribute.name in ("to", "dtype") and attribute.i in half:
            attribute.i = onnx.TensorProto.FLOAT
        if attribute.type == onnx.AttributeProto.TENSOR:
            widen(attribute.t)
    wide = path.with_name(f"float32-{path.name}")
    onnx.save(model, wide, save_as_external_data=True, location=f"{wide.name}.data")
    return wide
