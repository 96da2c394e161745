"""A small memory of features and actions, for a reward that learns inside somebody else's trainer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from genreward_fast.errors import UserError
from genreward_fast.types import Batch


class PairMemory:
    """The last rows (ψ(s_t), a_t) of N environments, sampled as pairs of consecutive rows of one episode.

    The frame that an episode ends on has no action, so it is in no pair and nothing here is terminal.
    """

    def __init__(
        self,
        num_envs: int,
        capacity: int,
        feature_dim: int,
        action_size: int,
        device: torch.device | str,
        seed: int = 0,
    ):
        """
        Args:
            capacity: rows kept, over all environments.

        Raises:
            UserError: the capacity holds less than two rows per environment.
        """
        self._rows = capacity // num_envs
        if self._rows < 2:
            raise UserError(f"a memory of {capacity} rows is too small for {num_envs} environments; use {2 * num_envs}")
        self._feature = torch.zeros(num_envs, self._rows, feature_dim, device=device)
        self._action = torch.zeros(num_envs, self._rows, action_size, device=device)
        self._written = np.zeros(num_envs, np.int64)
        self._is_first = np.zeros((num_envs, self._rows), bool)
        self._follows = np.zeros((num_envs, self._rows), bool)  # the row continues the one in the slot before it
        self._random = np.random.default_rng(seed)

    @classmethod
    def of_episodes(
        cls, episodes: Sequence[tuple[Tensor, Tensor]], device: torch.device | str, seed: int = 0
    ) -> PairMemory:
        """One that is filled with all rows of episodes that are over: features (T, D) and actions (T, A) of each.

        Raises:
            UserError: they have less than two rows in all.
        """
        features, actions = (torch.cat(parts) for parts in zip(*episodes))
        memory = cls(1, len(actions), features.shape[1], actions.shape[1], device, seed)
        memory._feature[0], memory._action[0] = features, actions
        memory._written[0] = len(actions)
        starts = np.cumsum([0, *(len(action) for _, action in episodes[:-1])])
        memory._is_first[0, starts] = True
        memory._follows = ~memory._is_first
        return memory

    def __len__(self) -> int:
        """Pairs that can be drawn."""
        return int(self._follows.sum())

    def append(self, envs: np.ndarray, feature: Tensor, action: Tensor, is_first: np.ndarray) -> None:
        """One row of each of `envs`: (n, D), (n, A) and (n,) bool."""
        slot = self._written[envs] % self._rows
        self._feature[envs, slot] = feature.to(self._feature)
        self._action[envs, slot] = action.to(self._action)
        self._is_first[envs, slot] = is_first
        self._follows[envs, slot] = ~is_first & (self._written[envs] > 0)
        self._follows[envs, (slot + 1) % self._rows] = False  # what it continued has just been overwritten
        self._written[envs] += 1

    def sample(self, pairs: int) -> Batch:
        """`pairs` pairs drawn uniformly with replacement: a `Batch` with T = 2, on the memory's device.

        Rewards are zeros: a reward does not learn from rewards.
        """
        envs, second = np.nonzero(self._follows)
        drawn = self._random.integers(len(envs), size=pairs)
        env = envs[drawn][:, None]
        slots = np.stack([(second[drawn] - 1) % self._rows, second[drawn]], axis=1)
        device = self._feature.device
        no = torch.zeros(pairs, 2, dtype=torch.bool, device=device)
        return Batch(
            action=self._action[env, slots],
            reward=torch.zeros(pairs, 2, device=device),
            is_first=torch.from_numpy(self._is_first[env, slots]).to(device),
            is_last=no,
            is_terminal=no,
            index=torch.from_numpy(env * self._rows + slots).to(device),
            feature=self._feature[env, slots],
        )
