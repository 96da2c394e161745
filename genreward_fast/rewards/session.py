"""What the Gymnasium wrappers share: frames in, windows, rewards out, and a reward that learns on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from torch import Tensor

from genreward_fast.errors import UserError
from genreward_fast.goals.frames import to_square
from genreward_fast.rewards.base import RewardModel, total
from genreward_fast.rewards.config import Credit
from genreward_fast.rewards.pairs import PairMemory
from genreward_fast.rewards.windows import WindowCollector

Frames = Callable[[], Any]


def check_episode_length(spec: Any, reward: RewardModel) -> None:
    """
    Args:
        spec: Gymnasium's, of the environment; None if it has none.

    Raises:
        UserError: episodes are cut before a window can close, so that nothing would ever be paid.
    """
    longest = getattr(spec, "max_episode_steps", None)
    if longest is not None and reward.frames.window > longest:
        raise UserError(
            f"a window of {reward.frames.window} steps is longer than the {longest} steps that an episode of "
            f"{spec.id} has at most: no window would ever close; use a shorter one, RewardConfig(window=...)"
        )


class RewardSession:
    """Shows a reward what N environments do, step by step, and works out what each step is paid.

    Attributes:
        steps: environment steps so far; set it when a reward's state of an earlier run has been loaded.
        metrics: what the reward's last update, or its freezing, reported.
    """

    def __init__(
        self,
        reward: RewardModel,
        num_envs: int,
        action_space: gymnasium.Space,
        frames: Frames,
        *,
        credit: Credit = "closing",
        env_reward: Literal["dense", "none"] = "dense",
        train_reward: bool = True,
        update_every: int = 8,
        batch_size: int = 1024,
        memory: int = 100_000,
        device: torch.device | str | None = None,
        seed: int = 0,
    ):
        """
        Args:
            reward: what to add.
            num_envs: N.
            action_space: of one environment.
            frames: returns the present frames of all environments, (N, H, W, 3) uint8 or a sequence of (H, W, 3).
            credit: "closing" or "spread", see the top of `genreward_fast/wrappers.py`. The reward's own credit says how
                a window's rows share its value; this one, whether `step` pays their sum or the trainer adds the rows.
            env_reward: whether the environment's own reward is kept ("dense") or dropped ("none").
            train_reward: whether a reward that learns is trained here, and frozen after its `learn_steps`.
            update_every: environment steps, over all environments, between two of its updates.
            batch_size: pairs of rows in an update.
            memory: rows kept for it.
            device: where frames and features are kept; the reward's own by default.
            seed: of the pairs that are drawn.

        Raises:
            UserError: an option has no such value, or the actions are not a bounded Box of the reward's action size.
        """
        if not isinstance(action_space, gymnasium.spaces.Box):
            raise UserError(f"the generated reward needs continuous actions (a Box), not {action_space}")
        if not np.isfinite([action_space.low, action_space.high]).all():
            raise UserError(
                "the generated reward needs actions with finite bounds; wrap the environment to give it some"
            )
        self.credit = credit
        if credit not in ("closing", "spread"):
            raise UserError(f"credit must be closing or spread, not {credit!r}")
        if env_reward not in ("dense", "none"):
            raise UserError(f"env_reward must be dense or none, not {env_reward!r}")
        if update_every < 1 or not 1 <= batch_size <= memory:
            raise UserError(
                f"update_every must be at least 1 and batch_size lie between 1 and memory; they are {update_every}, "
                f"{batch_size} and {memory}"
            )
        self.reward = reward
        self.num_envs = num_envs
        self.device = torch.device(device) if device is not None else getattr(reward, "device", torch.device("cpu"))
        self.keep_env_reward = env_reward == "dense"
        self.batch_size, self.update_every = batch_size, update_every
        self.steps = 0
        self.metrics: dict[str, Tensor] = {}
        self._due = 0
        self._frames = frames
        self._low = np.asarray(action_space.low, np.float64).reshape(-1)
        self._high = np.asarray(action_space.high, np.float64).reshape(-1)
        actions = len(self._low)
        expected = getattr(reward, "action_size", actions)
        if expected != actions:
            raise UserError(f"the reward was made with action_size={expected}, but the actions have {actions} numbers")
        self.windows = WindowCollector(reward.frames, num_envs, actions, self.device)
        self.memory: PairMemory | None = None
        if train_reward and not reward.frozen:
            self.memory = PairMemory(num_envs, memory, reward.frames.feature_dim, actions, self.device, seed)

    def check(self, actions: Any) -> None:
        """
        Raises:
            UserError: an action is NaN or infinite, or has not the size that the action space says.
        """
        values, size = np.asarray(actions, np.float64), len(self._low)
        if values.size != self.num_envs * size:
            raise UserError(
                f"actions must be {size} numbers for each of {self.num_envs} environments, not of shape {values.shape}"
            )
        values = values.reshape(self.num_envs, size)
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            raise UserError(f"the action for environment {bad[0]} is not finite: {values[bad[0]].tolist()}")

    def begin(self, envs: np.ndarray) -> None:
        self.windows.begin(envs)

    def observe(self, envs: np.ndarray) -> None:
        """Shows the present frames of `envs` to the reward; renders only if it wants one of them."""
        for_features, for_clips = self.windows.wanted(envs)
        if not len(for_features) and not len(for_clips):
            return
        frames = self._frames()
        spec = self.reward.frames
        if len(for_features):
            shown = to_square(self._stack(frames, for_features), spec.feature_size)
            self.windows.observe_features(for_features, self.reward.features(shown))
        if len(for_clips):
            self.windows.observe_clip_frames(for_clips, to_square(self._stack(frames, for_clips), spec.clip_size))

    def complete(self, envs: np.ndarray, actions: Any, env_reward: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """Rewards (N,) to return for a step in which `envs` moved, and what to add to the step's info."""
        values = np.asarray(actions, np.float64).reshape(self.num_envs, -1)[envs]
        values = np.clip(2 * (values - self._low) / (self._high - self._low) - 1, -1, 1)
        action = torch.as_tensor(values, dtype=torch.float32, device=self.device)
        if self.memory is not None:
            self.memory.append(envs, self.windows.features(envs), action, self.windows.row[envs] == 0)
        env_reward = np.asarray(env_reward, np.float64)
        closed = self.windows.complete(envs, action, torch.as_tensor(env_reward[envs], dtype=torch.float32))
        paid = env_reward.copy() if self.keep_env_reward else np.zeros_like(env_reward)
        info: dict[str, Any] = {}
        for group in closed:
            parts = self.reward.parts(group.window)
            for name, value in {"genreward": total(parts), **{f"genreward/{n}": v for n, v in parts.items()}}.items():
                rows = value.float().cpu().numpy()
                info.setdefault(name, np.zeros((self.num_envs, rows.shape[1]), np.float32))[group.envs] = rows
                info.setdefault(f"_{name}", np.zeros(self.num_envs, bool))[group.envs] = True
            if self.credit == "closing":
                paid[group.envs] += info["genreward"][group.envs].sum(axis=1)
        self._learn(len(envs))
        return paid, info

    def _learn(self, steps: int) -> None:
        self.steps += steps
        if self.memory is None:
            return
        self._due += steps
        while self._due >= self.update_every:
            self._due -= self.update_every
            if len(self.memory) >= self.batch_size:
                self.metrics = self.reward.update(self.memory.sample(self.batch_size))
        if self.steps >= self.reward.learn_steps and len(self.memory):
            memory = self.memory
            self.metrics = self.reward.freeze(memory.sample(self.batch_size) for _ in range(16))
            self.memory = None

    def _stack(self, frames: Any, envs: np.ndarray) -> Tensor:
        """(n, H, W, 3) uint8 on the device."""
        if frames is None or len(frames) != self.num_envs:
            raise UserError(f"render() must return {self.num_envs} RGB frames, one per environment, not {frames!r:.80}")
        stack = np.stack([np.asarray(frames[env]) for env in envs])
        if stack.dtype != np.uint8 or stack.ndim != 4 or stack.shape[3] != 3:
            raise UserError(f"frames must be (H, W, 3) uint8 RGB, not {stack.shape[1:]} {stack.dtype}")
        return torch.from_numpy(np.ascontiguousarray(stack)).to(self.device)
