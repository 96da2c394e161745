"""Collecting the windows that a reward scores, step by step, out of environments that run side by side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genreward_fast.types import FrameSpec, Window


@dataclass(frozen=True)
class ClosedWindows:
    """Windows that closed at the same step and have the same number of fresh rows.

    Attributes:
        envs: (B,) int64, the environments they come from.
        window: the windows, one per entry of `envs`.
    """

    envs: np.ndarray
    window: Window


class WindowCollector:
    """Keeps the last `window` rows of N environments, and hands out each window when it closes.

    A row t is the frame of s_t and the action a_t: `observe` what is needed of s_t, then `complete` the row with a_t.
    Windows never cross episodes. A row that an episode ends on is complete, so a window may close there; an episode
    shorter than a window has none. On CUDA nothing here waits for the device.

    Attributes:
        row: (N,) int64, the row of its episode that each environment is at.
    """

    def __init__(self, spec: FrameSpec, num_envs: int, action_size: int, device: torch.device | str):
        self.spec = spec
        self.row = np.zeros(num_envs, np.int64)
        # Row t of an episode of environment e lies in slot e * window + t % window.
        slots = num_envs * spec.window
        self._action = torch.zeros(slots, action_size, device=device)
        self._env_reward = torch.zeros(slots, device=device)
        self._feature = torch.zeros(slots, spec.feature_dim, device=device)
        self._clip_frames: list[dict[int, Tensor]] = [{} for _ in range(num_envs)]

    def begin(self, envs: np.ndarray) -> None:
        """Puts `envs` (indices) at row 0 of a new episode; their open windows are dropped."""
        self.row[envs] = 0
        for env in envs:
            self._clip_frames[env].clear()

    def wanted(self, envs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those of `envs` whose present frame is needed for a feature, and those for a clip."""
        none = np.zeros(0, np.int64)
        if not self.spec.window:
            return none, none
        clip = [env for env in envs if self.spec.clip_size and self.spec.clip_frame_at(int(self.row[env]))]
        return envs if self.spec.feature_size else none, np.asarray(clip, np.int64)

    def observe_features(self, envs: np.ndarray, features: Tensor) -> None:
        """(n, D) features of the present frames of `envs`."""
        self._write(self._feature, self._slots(envs, self.row[envs]), features)

    def observe_clip_frames(self, envs: np.ndarray, frames: Tensor) -> None:
        """(n, clip_size, clip_size, 3) uint8 present frames of `envs`."""
        for env, frame in zip(envs, frames):
            self._clip_frames[env][int(self.row[env])] = frame

    def features(self, envs: np.ndarray) -> Tensor:
        """(n, D) features of the present frames of `envs`, as observed."""
        return self._feature[self._slots(envs, self.row[envs])]

    def complete(self, envs: np.ndarray, action: Tensor, env_reward: Tensor) -> list[ClosedWindows]:
        """Ends the present row of `envs` with (n, A) actions and (n,) environment rewards; moves to the next."""
        if not self.spec.window:
            self.row[envs] += 1
            return []
        slots = self._slots(envs, self.row[envs])
        self._write(self._action, slots, action)
        self._write(self._env_reward, slots, env_reward)
        self.row[envs] += 1
        closing = np.asarray([env for env in envs if self.spec.closes_at(int(self.row[env]))], np.int64)
        first = self.row[closing] == self.spec.window
        groups = [(closing[first], self.spec.window), (closing[~first], min(self.spec.interval, self.spec.window))]
        return [ClosedWindows(group, self._window(group, fresh)) for group, fresh in groups if len(group)]

    def _slots(self, envs: np.ndarray, rows: np.ndarray) -> Tensor:
        """Where these rows lie, beside them; the arguments broadcast."""
        slots = torch.from_numpy(envs * self.spec.window + rows % self.spec.window)
        return slots.to(self._action.device, non_blocking=True)

    @staticmethod
    def _write(kept: Tensor, slots: Tensor, values: Tensor) -> None:
        # A copy to the host has to be waited for.
        kept.index_copy_(0, slots, values.to(kept, non_blocking=kept.is_cuda))

    def _window(self, envs: np.ndarray, fresh: int) -> Window:
        start = self.row[envs] - self.spec.window
        pick = self._slots(envs[:, None], start[:, None] + np.arange(self.spec.window))
        return Window(
            clip=torch.stack([self._clip(env, first) for env, first in zip(envs, start)])
            if self.spec.clip_size
            else None,
            features=self._feature[pick] if self.spec.feature_size else None,
            action=self._action[pick],
            env_reward=self._env_reward[pick],
            fresh=fresh,
        )

    def _clip(self, env: int, start: int) -> Tensor:
        """(K, clip_size, clip_size, 3) of the window that starts at row `start`; frames no later window needs go."""
        frames = self._clip_frames[env]
        clip = torch.stack([frames[start + step] for step in self.spec.clip_steps])
        for row in [row for row in frames if row < start + self.spec.interval]:
            del frames[row]
        return clip
