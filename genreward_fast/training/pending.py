"""Rewards on their way into the replay: they arrive at a fixed later step, whenever they were computed.

Rows: an episode's row k holds the frame of s_k, the reward of arriving there and the action a_k. A window of T rows
that starts at row w is complete when row w + T has arrived, because that row carries the environment's reward for the
window's last action. Its scores belong to (s_t, a_t) and are therefore added to the rewards of rows w + 1 .. w + T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class _Pending:
    due: int
    envs: np.ndarray
    starts: np.ndarray  # replay rows that the first column of `values` is added to
    upto: np.ndarray  # rows below this are sampleable once the values are in
    values: Tensor | None


class PendingRewards:
    """Rows whose reward is known or on its way, but which are not sampleable before a fixed environment step."""

    def __init__(self, delay: int):
        self.delay = delay
        self._queue: list[_Pending] = []

    def add(self, now: int, envs: np.ndarray, starts: np.ndarray, upto: np.ndarray, values: Tensor | None) -> None:
        """`values` (B, n) will be added to rows starts .. starts + n - 1 of each environment after the delay."""
        self._queue.append(_Pending(now + self.delay, envs, starts, upto, values))

    def drop(self, env: int, first_row: int) -> None:
        """Forgets what concerns rows of `env` from `first_row` on: their episode was discarded."""
        for entry in self._queue:
            keep = (entry.envs != env) | (entry.upto <= first_row)
            entry.envs, entry.starts, entry.upto = entry.envs[keep], entry.starts[keep], entry.upto[keep]
            if entry.values is not None:
                entry.values = entry.values[torch.as_tensor(keep, device=entry.values.device)]
        self._queue = [entry for entry in self._queue if len(entry.envs)]

    def pop_due(self, now: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, Tensor | None]]:
        """(envs, starts, upto, values) of everything due at environment step `now`, oldest first."""
        due = [entry for entry in self._queue if entry.due <= now]
        self._queue = [entry for entry in self._queue if entry.due > now]
        return [(entry.envs, entry.starts, entry.upto, entry.values) for entry in due]

    def state(self) -> list[dict[str, Any]]:
        """What is waiting, for a checkpoint."""
        return [
            {
                "due": entry.due,
                "envs": torch.from_numpy(entry.envs),
                "starts": torch.from_numpy(entry.starts),
                "upto": torch.from_numpy(entry.upto),
                "values": None if entry.values is None else entry.values.cpu(),
            }
            for entry in self._queue
        ]

    def load_state(self, state: list[dict[str, Any]]) -> None:
        """Waits for what `state` returned."""
        self._queue = [
            _Pending(e["due"], e["envs"].numpy(), e["starts"].numpy(), e["upto"].numpy(), e["values"]) for e in state
        ]
