"""The arrays of the replay: one tensor a field, on the compute device or in host memory."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from genreward_fast.agent.memory import free_bytes
from genreward_fast.errors import UserError
from genreward_fast.training.replay_config import ReplayConfig

DEVICE_SHARE = 0.5


def choose_device(size: int, device: torch.device | str, reserve: int = 0) -> torch.device:
    """Where to keep `size` bytes of rows for work on `device`.

    The rule: on a CUDA device if they take at most half of the memory that is free there now and leave `reserve` bytes
    for the networks and their activations; in host memory otherwise.

    Raises:
        UserError: they exceed what the host has free, too, together with the networks if those are there.
    """
    device = torch.device(device)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        if size <= min(DEVICE_SHARE * free, free - reserve):
            return device
    if device.type not in ("cuda", "cpu"):
        return device
    memory = free_bytes(torch.device("cpu"))
    if memory is not None and size + (reserve if device.type == "cpu" else 0) > memory:
        beside = f", of which the agent takes {reserve / 1e9:.1f}" if reserve and device.type == "cpu" else ""
        raise UserError(
            f"the replay needs {size / 1e9:.1f} GB and this machine has {memory / 1e9:.1f} GB{beside}: "
            f"lower its capacity (--replay-capacity)"
        )
    return torch.device("cpu")


class RowStore:
    """N * R rows of every field, addressed by flat position env * R + slot.

    Rows in host memory for a CUDA device are gathered into pinned buffers and copied from there without waiting.

    Attributes:
        arrays: field -> (N * R, ...) tensor on `storage`.
        storage: the device of the arrays.
        device: the device that gathered rows are delivered on.
    """

    def __init__(self, config: ReplayConfig, device: torch.device | str, reserve: int = 0) -> None:
        self.device = torch.device(device)
        rows = config.num_envs * config.slots
        self.storage = choose_device(rows * config.row_bytes(), self.device, reserve)
        self.arrays = {
            name: torch.zeros((rows, *size), dtype=dtype, device=self.storage)
            for name, (size, dtype) in config.fields().items()
        }
        # The last element of a batch to write each position, see `scatter_last`.
        self._writer = torch.full((rows,), -1, dtype=torch.int64, device=self.storage)
        self._staged = self.device.type == "cuda" and self.storage.type == "cpu"

    def index(self, positions: np.ndarray) -> Tensor:
        """Host positions as an int64 tensor beside the arrays."""
        return torch.from_numpy(np.ascontiguousarray(positions, np.int64)).to(self.storage, non_blocking=True)

    def gather(self, index: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Rows at `index` (...), one operation a field, each as (..., *row shape) on `device`."""
        index = index.to(self.storage)
        flat = index.reshape(-1)
        rows: dict[str, Tensor] = {}
        for name in names:
            array = self.arrays[name]
            if self._staged:
                pinned = torch.empty((len(flat), *array.shape[1:]), dtype=array.dtype, pin_memory=True)
                picked = torch.index_select(array, 0, flat, out=pinned).to(self.device, non_blocking=True)
            else:
                picked = torch.index_select(array, 0, flat)
            rows[name] = picked.view(*index.shape, *array.shape[1:])
        return rows

    def scatter(self, index: Tensor, rows: dict[str, Tensor]) -> None:
        """Writes `rows`, each (..., *row shape), at positions `index` (...) that do not repeat with different rows."""
        index = index.to(self.storage)
        for name, value in rows.items():
            array = self.arrays[name]
            expected = (*index.shape, *array.shape[1:])
            if value.shape != expected:
                raise ValueError(f"{name} must have shape {tuple(expected)}, not {tuple(value.shape)}")
            # A copy to the host has to be waited for.
            value = value.detach().to(self.storage, array.dtype, non_blocking=self.storage.type == "cuda")
            array.index_copy_(0, index.reshape(-1), value.reshape(-1, *array.shape[1:]))

    def scatter_last(self, index: Tensor, rows: dict[str, Tensor]) -> None:
        """As `scatter` at positions that may repeat: the last one counts, for all fields, on every device alike."""
        flat = index.to(self.storage).reshape(-1)
        self._writer.index_fill_(0, flat, -1)
        order = torch.arange(len(flat), device=self.storage)
        self._writer.scatter_reduce_(0, flat, order, "amax")
        # Repeated positions now all write the same row, so their order does not matter.
        last = self._writer.index_select(0, flat)
        self.scatter(
            flat,
            {
                name: row.to(self.storage).reshape(len(flat), *row.shape[index.dim() :])[last]
                for name, row in rows.items()
            },
        )

    def add(self, name: str, index: Tensor, values: Tensor) -> None:
        """Adds `values` (n,) at `index` (n,), in a fixed order where positions repeat."""
        array = self.arrays[name]
        array.index_put_((index.to(self.storage),), values.detach().to(self.storage, array.dtype), accumulate=True)
