"""From a module to the `torch.export` program that the backends compile."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from genreward_fast.errors import UserError, first_line


def export_program(
    module: torch.nn.Module, example_inputs: tuple[Tensor, ...], dynamic_batch: bool, max_batch: int
) -> ExportedProgram:
    """The module's graph for inference. With `dynamic_batch`, axis 0 of every input may be any of 1..`max_batch`.

    The bound matters: with it the compiler uses 64-bit indices for tensors that could pass 2^31 elements, without it
    it judges by the example alone.

    Raises:
        UserError: with `dynamic_batch`, whatever torch.export objects to, mostly that the graph needs one batch size.
    """
    shapes = None
    if dynamic_batch:
        # torch.export takes a size of 1 for a constant.
        if example_inputs[0].shape[0] == 1:
            example_inputs = tuple(torch.cat([tensor, tensor]) for tensor in example_inputs)
        batch = Dim("batch", min=1, max=max_batch)
        # A module may take its inputs as *args, so there are no names to put the axes under.
        shapes = tuple({0: batch} for _ in example_inputs)
    with torch.no_grad():
        try:
            return torch.export.export(module, example_inputs, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            if not dynamic_batch:
                raise
            raise UserError(
                f"{type(module).__name__} cannot be exported for every batch size up to {max_batch} "
                f"({first_line(error)}); if it needs one batch size, build with dynamic_batch=False"
            ) from error
