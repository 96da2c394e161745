"""What the examples train on: a dot that is pushed over a white field, and a video of it reaching the middle."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch

from genreward_fast.goals.goal import Goal

EPISODE = 32
SIDE = 64


class PointMass(gymnasium.Env[np.ndarray, np.ndarray]):
    """Moves a dot by up to 0.15 a step in the square [-1, 1]²; it starts anywhere, and is paid nothing.

    Observations are its position, (2,) float32. Frames are (64, 64, 3) uint8.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, render_mode: str | None = "rgb_array"):
        self.render_mode = render_mode
        self.position = np.zeros(2, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.position.copy(), {}

    def step(self, action: np.ndarray) -> Any:
        self.position = np.clip(self.position + 0.15 * np.clip(action, -1, 1), -1, 1).astype(np.float32)
        return self.position.copy(), 0.0, False, False, {}

    def render(self) -> np.ndarray:
        column, row = ((self.position + 1) / 2 * (SIDE - 1)).round().astype(int)
        y, x = np.mgrid[:SIDE, :SIDE]
        inside = (x - column) ** 2 + (y - row) ** 2 <= (SIDE // 10) ** 2
        return np.where(inside[..., None], np.uint8([200, 40, 40]), np.uint8(255)).astype(np.uint8)


def make_env() -> gymnasium.Env[np.ndarray, np.ndarray]:
    """One environment whose episodes are cut after `EPISODE` steps."""
    return gymnasium.wrappers.TimeLimit(PointMass(), EPISODE)


def make_goal() -> Goal:
    """The dot comes from a corner to the middle, and stays. Your own goal: `Goal.from_video("goal.mp4", text=...)`."""
    env = PointMass()
    frames = []
    for step in range(16):
        env.position = np.full(2, min(0.0, -0.9 + 0.08 * step), np.float32)
        frames.append(torch.from_numpy(env.render()))
    return Goal.from_video(torch.stack(frames), "move the red dot to the middle", select="last")
