"""A short name for an encoder's exact function, so that what was made with other weights is recognised."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def fingerprint(module: nn.Module, config: Mapping[str, Any]) -> str:
    """sha256 (hexadecimal) over the weights, as float32, and a configuration.

    It does not depend on device, on the names that a library's version gives to tensors, or on their order: the digests
    of the tensors are sorted. About 2 GB/s on one CPU core.

    Args:
        module: all tensors of its `state_dict()` count.
        config: whatever else the outputs depend on (sizes, heads, epsilons); must be JSON.
    """
    digests = []
    for tensor in module.state_dict().values():
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        digest = hashlib.sha256(repr(tuple(values.shape)).encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
        digests.append(digest.hexdigest())
    text = json.dumps({"config": dict(config), "tensors": sorted(digests)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
