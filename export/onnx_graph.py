"""From a module to an ONNX file: what ONNX Runtime runs, and what TensorRT compiles."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from genreward_fast.export.program import export_program
from genreward_fast.kernels.triton_support import references_only

# The first opset with GroupNormalization over any dtype.
_OPSET = 21
# A protobuf message ends at 2 GiB; the graph itself needs a little of that.
_MOST_WEIGHTS = 2**31 - 2**26


def write_onnx(
    module: torch.nn.Module, example_inputs: tuple[Tensor, ...], path: Path, dynamic_batch: bool, max_batch: int
) -> None:
    """Writes the module's plain form (of ops with a Triton kernel, the reference) to `path`, in its own dtypes.

    Weights beyond 2 GiB go to `weights_file(path)`. A table that the module makes on its first call has to exist:
    run the module once before.

    Raises:
        UserError: as for `export_program`.
    """
    with references_only():
        program = export_program(module, example_inputs, dynamic_batch, max_batch)
        graph = torch.onnx.export(program, dynamo=True, opset_version=_OPSET, external_data=False, verbose=False)
    assert graph is not None  # it is None only where a file name is given
    size = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    graph.save(str(path), external_data=size > _MOST_WEIGHTS)


def weights_file(path: Path) -> Path:
    """Where the weights of the ONNX file `path` lie if they do not fit into it."""
    return path.with_name(f"{path.name}.data")


def onnx_sha256(path: Path) -> str:
    """sha256 over the graph's bytes and those of its weights, in hexadecimal."""
    digest = hashlib.sha256()
    for part in (path, weights_file(path)):
        if part.exists():
            with open(part, "rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()
