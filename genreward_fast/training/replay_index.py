"""The bookkeeping of the replay, on the host: which rows exist, which may be sampled, and which come next.

Rows of each environment are numbered from 0 for ever; row i lies in slot i mod R of that environment's ring of R slots.
Of the rows [oldest, written) that a ring holds, the prefix [oldest, released) may be sampled.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np

from genreward_fast.training.replay_config import ReplayConfig

PAIR_ROUNDS = 32


class RowIndex:
    """Counters, online queue and random choices for N rings of R slots.

    Attributes:
        written: (N,) int64, rows appended so far, the number of the next row.
        released: (N,) int64, rows below this number may be sampled.
        oldest: (N,) int64, the first row that has not been overwritten; it never moves back.
        saved: (N,) int64, rows below this number are on disk, or were overwritten before they could be.
        is_last: (N, R) bool, the flag of each slot, kept here so that drawing pairs asks nothing of the device.
    """

    def __init__(self, config: ReplayConfig, seed: int) -> None:
        num_envs, slots = config.num_envs, config.slots
        self.num_envs = num_envs
        self.slots = slots
        self.stride = config.sequence_length
        self.length = config.sequence_length + config.context
        self.written = np.zeros(num_envs, np.int64)
        self.released = np.zeros(num_envs, np.int64)
        self.oldest = np.zeros(num_envs, np.int64)
        self.saved = np.zeros(num_envs, np.int64)
        self.next_online = np.zeros(num_envs, np.int64)
        self.is_last = np.zeros((num_envs, slots), np.bool_)
        self.queue: deque[tuple[int, int]] = deque()
        self.rng = np.random.default_rng(seed)
        self._rollbacks: list[list[int]] = [[] for _ in range(num_envs)]
        self._envs = np.arange(num_envs)

    def positions(self, env: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Flat positions env * R + slot of absolute rows; the arguments broadcast."""
        return env * self.slots + row % self.slots

    def append(self, is_first: np.ndarray, is_last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Counts one more row of every environment.

        Args:
            is_first, is_last: (N,) bool, flags of the new rows.

        Returns:
            (N,) int64 numbers of the new rows, and the flat positions (any number of them) of earlier rows that must
            now be flagged as an episode's last, because an episode begins behind them.
        """
        rows = self.written.copy()
        before = (rows - 1) % self.slots
        cut = is_first & (rows > self.oldest) & ~self.is_last[self._envs, before]
        self.is_last[self._envs[cut], before[cut]] = True
        self.is_last[self._envs, rows % self.slots] = is_last
        self.written += 1
        np.maximum(self.oldest, self.written - self.slots, out=self.oldest)
        return rows, self.positions(self._envs[cut], rows[cut] - 1)

    def extend(self, env: int, is_last: np.ndarray) -> np.ndarray:
        """Counts len(is_last) more rows of one environment, as they were before a checkpoint; their numbers."""
        rows = self.written[env] + np.arange(len(is_last))
        self.is_last[env, rows % self.slots] = is_last
        self.written[env] += len(is_last)
        self.oldest[env] = max(self.oldest[env], self.written[env] - self.slots)
        return rows

    def release(self, env: int, upto: int) -> None:
        """Lets rows below `upto` be sampled; never more than are written, and never fewer than before."""
        self.released[env] = max(self.released[env], min(upto, self.written[env]))
        while self.next_online[env] + self.length <= self.released[env]:
            self.queue.append((env, int(self.next_online[env])))
            self.next_online[env] += self.stride
        while self.queue and not self._available(*self.queue[0]):
            self.queue.popleft()

    def rollback(self, env: int, to_row: int) -> int:
        """Discards rows from `to_row` on, save those on disk; returns the number that the next row will get."""
        to_row = int(max(to_row, self.saved[env], self.oldest[env]))
        if to_row < self.written[env]:
            self.written[env] = to_row
            self.released[env] = min(self.released[env], to_row)
            self._rollbacks[env].append(to_row)
            self.queue = deque(item for item in self.queue if item[0] != env or self._available(*item))
            while self.next_online[env] > 0 and self.next_online[env] - self.stride + self.length > self.released[env]:
                self.next_online[env] -= self.stride
        return int(self.written[env])

    def generation(self, env: int) -> int:
        """How often rows of `env` have been discarded: what tells a row from its successor of the same number."""
        return len(self._rollbacks[env])

    def valid_upto(self, env: int, generation: int | None) -> int:
        """Rows of that generation with a number below this one have not been discarded since."""
        since = [] if generation is None else self._rollbacks[env][generation:]
        return int(min([self.written[env], *since]))

    def _available(self, env: int, start: int) -> bool:
        return bool(self.oldest[env] <= start and start + self.length <= self.released[env])

    def _spans(self, length: int) -> np.ndarray:
        """(N,) int64: starts of sequences of `length` sampleable rows in each environment."""
        return np.maximum(self.released - self.oldest - length + 1, 0)

    def rows(self) -> int:
        """Rows that may be sampled."""
        return int(self._spans(1).sum())

    def starts(self) -> int:
        """Different sequences that may be sampled."""
        return int(self._spans(self.length).sum())

    def _uniform(self, count: int, spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ends = np.cumsum(spans)
        drawn = self.rng.integers(ends[-1], size=count)
        env = np.searchsorted(ends, drawn, side="right")
        return env, self.oldest[env] + drawn - (ends - spans)[env]

    def draw(self, batch: int) -> np.ndarray:
        """(batch, L + context) int64 flat positions: online stretches first, then uniform over all starts."""
        spans = self._spans(self.length)
        if not spans.any():
            raise RuntimeError(f"no sequence of {self.length} released rows to sample; ask can_sample() first")
        online: list[tuple[int, int]] = []
        while self.queue and len(online) < batch:
            item = self.queue.popleft()
            if self._available(*item):
                online.append(item)
        env, start = self._uniform(batch - len(online), spans)
        queued = np.array(online, np.int64).reshape(-1, 2)
        env, start = np.concatenate([queued[:, 0], env]), np.concatenate([queued[:, 1], start])
        return self.positions(env[:, None], start[:, None] + np.arange(self.length))

    def draw_pairs(self, count: int) -> np.ndarray:
        """(count, 2) int64 flat positions, uniform over consecutive sampleable rows of one episode."""
        spans = self._spans(2)
        envs, rows = np.empty(0, np.int64), np.empty(0, np.int64)
        # Rejection is exact and touches few rows: an episode has one last row in hundreds.
        for _ in range(PAIR_ROUNDS if spans.any() else 0):
            env, row = self._uniform(count, spans)
            keep = ~self.is_last[env, row % self.slots]
            envs, rows = np.concatenate([envs, env[keep]]), np.concatenate([rows, row[keep]])
            if len(envs) >= count:
                break
        else:
            envs, rows = self._all_pairs()
            if not len(envs):
                raise RuntimeError("no pair of consecutive released rows to sample; ask can_sample_pairs() first")
            chosen = self.rng.integers(len(envs), size=count)
            envs, rows = envs[chosen], rows[chosen]
        return self.positions(envs[:count, None], rows[:count, None] + np.arange(2))

    def _all_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        env = np.repeat(self._envs, self._spans(2))
        row = np.concatenate([self.oldest[e] + np.arange(n) for e, n in enumerate(self._spans(2))])
        keep = ~self.is_last[env, row % self.slots]
        return env[keep], row[keep]

    def has_pairs(self) -> bool:
        """Whether `draw_pairs` can succeed."""
        for env, span in enumerate(self._spans(2)):
            for count in (min(span, 64), span):  # the newest rows nearly always settle it
                slots = (self.oldest[env] + span - 1 - np.arange(count)) % self.slots
                if not self.is_last[env, slots].all():
                    return True
        return False

    def unsaved(self) -> Iterator[tuple[int, int, int]]:
        """(env, first row, behind the last row) of what is released, still there and not yet on disk."""
        for env in range(self.num_envs):
            start, stop = int(max(self.saved[env], self.oldest[env])), int(self.released[env])
            if start < stop:
                yield env, start, stop

    def state(self) -> dict:
        """What a resumed run needs, as plain JSON values. Rows that are not released do not count as written."""
        newest = self.is_last[self._envs, (self.released - 1) % self.slots] & (self.released > self.oldest)
        return {
            "newest_is_last": newest.tolist(),
            "released": self.released.tolist(),
            "oldest": self.oldest.tolist(),
            "next_online": self.next_online.tolist(),
            "queue": [list(item) for item in self.queue],
            "rng": json.dumps(self.rng.bit_generator.state),
        }

    def load_state(self, state: dict) -> None:
        """Continues from `state`; the rows below `released` are counted as saved. R may differ from the saved run's."""
        released, oldest = np.array(state["released"], np.int64), np.array(state["oldest"], np.int64)
        # A ring can have overwritten rows that were never released: numbering goes on behind them.
        self.released = np.maximum(released, oldest)
        self.written, self.saved = self.released.copy(), self.released.copy()
        self.oldest = np.maximum(oldest, self.written - self.slots)
        self.next_online = np.array(state["next_online"], np.int64)
        self.queue = deque(_pairs(state["queue"]))
        self.rng.bit_generator.state = json.loads(state["rng"])


def _pairs(items: Iterable[Iterable[int]]) -> Iterator[tuple[int, int]]:
    for env, start in items:
        yield int(env), int(start)
