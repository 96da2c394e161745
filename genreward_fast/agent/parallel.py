"""Several processes that train one agent, each on a device of its own, started by `torchrun`."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from genreward_fast.errors import UserError


class Parallel:
    """The processes of a torch.distributed group, and what they tell each other.

    Everything is collective: all of them call it, in the same order. On CUDA it goes through NCCL, in the order of the
    current stream, and a CUDA graph can record it.

    Attributes:
        rank, size: this process's number, from 0, and how many there are.
    """

    def __init__(self, group: Any = None) -> None:
        """The given group, or all processes; torch.distributed must have been initialised."""
        import torch.distributed as distributed

        self._distributed, self._group = distributed, group
        self.rank, self.size = distributed.get_rank(group), distributed.get_world_size(group)
        self._averages = distributed.get_backend(group) == "nccl"

    @classmethod
    def from_environment(cls, device: str = "cuda") -> tuple[Parallel, torch.device]:
        """Joins the processes that `torchrun` started, each with the GPU of its local rank.

        Args:
            device: "cuda" or "cpu".

        Raises:
            UserError: this process was not started by `torchrun`, or has no GPU of its own.
        """
        import torch.distributed as distributed

        if "LOCAL_RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            raise UserError("training in parallel must be started with torchrun, which tells each process its number")
        local, own = int(os.environ["LOCAL_RANK"]), torch.device(device)
        if own.type == "cuda":
            if local >= torch.cuda.device_count():
                raise UserError(
                    f"process {local} of this machine has no GPU of its own: there are {torch.cuda.device_count()}; "
                    "start as many with --nproc-per-node"
                )
            own = torch.device("cuda", local)
            torch.cuda.set_device(own)
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if own.type == "cuda" else "gloo")
        return cls(), own

    def mean_(self, values: Tensor) -> None:
        """Replaces a tensor of the same shape in each process by the mean over them."""
        operations = self._distributed.ReduceOp
        if self._averages:
            self._distributed.all_reduce(values, operations.AVG, self._group)
        else:
            self._distributed.all_reduce(values, operations.SUM, self._group)
            values.div_(self.size)

    def gather(self, values: Tensor) -> Tensor:
        """(n, ...) in each process to the same (size * n, ...) in all, one process's after the other's."""
        result = values.new_empty(self.size * values.shape[0], *values.shape[1:])
        self._distributed.all_gather_into_tensor(result, values.detach().contiguous(), self._group)
        return result

    def broadcast_(self, values: Tensor) -> None:
        """Replaces a tensor by that of process 0."""
        self._distributed.broadcast(values, group_src=0, group=self._group)

    def close(self) -> None:
        """Leaves the group."""
        self._distributed.destroy_process_group(self._group)
