"""How fast a run is: examples per second, and percent of what the device reaches with products of matrices."""

from __future__ import annotations

import time

import torch

from genreward_fast.goals.flops import matmul_flops_per_second


class Speedometer:
    """Counts examples between two readings."""

    def __init__(self, flops: int, device: torch.device, dtype: torch.dtype) -> None:
        """
        Args:
            flops: operations that this process spends on an example.
            dtype: of the products. The limit is measured on CUDA only: processors change their clock all the time.
        """
        self.flops = flops
        self.limit = matmul_flops_per_second(device, dtype) if device.type == "cuda" else None
        self.restart()

    def restart(self) -> None:
        self._examples, self._started = 0, time.perf_counter()

    def count(self, examples: int) -> None:
        self._examples += examples

    def read(self, processes: int) -> dict[str, float]:
        """Numbers for the log since the last reading; the loss has been read, so the device has finished."""
        rate = self._examples / max(time.perf_counter() - self._started, 1e-9)
        self.restart()
        values = {"speed/samples_per_second": rate * processes}
        if self.limit is not None:
            values["speed/percent_of_peak"] = 100 * rate * self.flops / self.limit
        return values
