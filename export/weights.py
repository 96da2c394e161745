"""The fingerprint that ties an engine to the weights it was built from."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from genreward_fast.errors import UserError


def weights_sha256(module: torch.nn.Module) -> str:
    """sha256 over the names, dtypes, shapes and bytes of everything in `module.state_dict()`, in hexadecimal.

    It depends on the weights' dtype, not on their device, memory format or order.

    Raises:
        UserError: the state holds something that is no tensor (`get_extra_state`).
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if not isinstance(value, Tensor):
            raise UserError(f"{type(module).__name__}: {name} of its state is no tensor; engines need tensors only")
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
