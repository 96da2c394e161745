"""Running means of what the updates report, kept on the device until somebody reads them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Meters:
    """Sums of 0-d tensors by name. Adding costs no host synchronisation; `read` is the one place that does."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        known: dict[torch.device, tuple[list[Tensor], list[Tensor]]] = {}
        for name, value in values.items():
            value = value.detach().float()
            if name in self._sums:
                sums, added = known.setdefault(value.device, ([], []))
                sums.append(self._sums[name])
                added.append(value)
            else:
                self._sums[name] = value.clone()
            self._counts[name] = self._counts.get(name, 0) + 1
        for sums, added in known.values():  # on CUDA one launch for all
            torch._foreach_add_(sums, added)

    def read(self) -> dict[str, float]:
        """Means since the last reading, then starts anew. Values that are not finite stay as they are."""
        if not self._sums:
            return {}
        means: dict[str, float] = {}
        for device in {value.device for value in self._sums.values()}:  # one transfer each
            names = [name for name, value in self._sums.items() if value.device == device]
            stacked = torch.stack([self._sums[name] / self._counts[name] for name in names])
            means |= dict(zip(names, stacked.tolist()))
        self._sums.clear()
        self._counts.clear()
        return means


def first_not_finite(values: dict[str, float]) -> str | None:
    """The name of the first value that is NaN or infinite; single losses are looked at before their sum."""
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    losses = [name for name in bad if "loss" in name and not name.endswith("total")]
    return next(iter(losses or bad), None)
