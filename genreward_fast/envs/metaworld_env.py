"""One Meta-World task as a gymnasium environment that renders on demand."""

from __future__ import annotations

import logging
import sys
from typing import Any

from genreward_fast.envs.pixel_env import PixelEnv  # first: it selects the OpenGL backend before mujoco is imported

# isort: split
import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from metaworld.env_dict import ENV_CLS_MAP

from genreward_fast.envs.env_config import ACTION_SIZE, CAMERAS, EnvConfig
from genreward_fast.envs.renderer import Renderer

__all__ = ["ACTION_SIZE", "CAMERAS", "STATE_SIZE", "EnvConfig", "MetaWorldEnv", "make"]

STATE_SIZE = 39

# What Meta-World's `reset_model` changes in the model, over all 50 tasks.
_POSES = ("body_pos", "body_quat", "site_pos")


class MetaWorldEnv(PixelEnv):
    """A Meta-World v3 task whose start and goal are drawn anew at each reset.

    Observation: (39,) float64, Meta-World's state: hand (3), gripper opening (1), objects (14), the same of the step
    before (18), goal (3). Action: (4,) float32 in [-1, 1], displacement of the hand and effort of the gripper; values
    beyond are clipped. Reward: Meta-World's dense reward, 0 to 10 a simulator step. An episode is never terminated; it
    is truncated after `config.steps` steps. `info["success"]` is a bool.

    An episode depends on nothing but its random draws: `reset(seed=s)` gives the same episode whatever came before, and
    the resets without a seed that follow it give the same sequence of episodes.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 80}  # noqa: RUF012  gymnasium declares it as a plain dict

    def __init__(self, config: EnvConfig) -> None:
        self.config = config
        mujoco.set_mju_user_warning(_log_warning)
        simulation = ENV_CLS_MAP[f"{config.task}-v3"]()
        # What Meta-World's own benchmarks set through pickled tasks; there are 50 of those for a task, and making them
        # fails by chance. Here every reset draws from the whole space of starts and goals.
        simulation._set_task_called = True
        simulation._partially_observable = False
        simulation.__dict__.pop("sawyer_observation_space", None)  # cached, with the goal hidden
        simulation.seeded_rand_vec = True
        simulation.max_path_length = sys.maxsize  # beyond it, Meta-World raises
        self.simulation = simulation
        self._poses = {name: getattr(simulation.model, name).copy() for name in _POSES}
        super().__init__(ACTION_SIZE, STATE_SIZE)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode; see the class for what `seed` means. `info["success"]` is False."""
        super().reset(seed=seed)
        simulation = self.simulation
        for name, value in self._poses.items():
            getattr(simulation.model, name)[:] = value
        simulation.np_random = self.np_random
        # Twice: the first pass draws the start and the goal and moves the model's bodies, some of them too late for
        # the observation; the second, with the same draw, sees them where they are. Meta-World does the same, except
        # that there the bodies' places in the last episode leak into the first pass.
        simulation._freeze_rand_vec = False
        MujocoEnv.reset(simulation)
        simulation._freeze_rand_vec = True
        state, _ = MujocoEnv.reset(simulation)
        simulation.curr_path_length = 0
        simulation._prev_obs = state[:18].copy()
        state[18:36] = simulation._prev_obs
        # The goal's marker is moved in the model alone: without this the first picture shows it where it was.
        mujoco.mj_kinematics(simulation.model, simulation.data)
        mujoco.mj_camlight(simulation.model, simulation.data)
        self._steps, self._open = 0, True
        return state.astype(np.float64), {"success": False}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Applies an action `config.action_repeat` times.

        Args:
            action: (4,) float, clipped to [-1, 1].

        Raises:
            ValueError: the action has another shape, or a value in it is not finite.
            RuntimeError: there is no open episode.
        """
        action = self._checked(action)
        total, success = 0.0, False
        for _ in range(self.config.action_repeat):
            state, reward, _, _, info = self.simulation.step(action)
            total += float(reward)
            success = success or bool(info["success"])
        self._steps += 1
        truncated = self._steps >= self.config.steps
        self._open = not truncated
        info = {**info, "success": success}
        return state, total, False, truncated, info

    def _make_renderer(self) -> Renderer:
        model, data = self.simulation.model, self.simulation.data
        return Renderer(model, data, self.config.camera, quality=self.config.rendering == "quality")


def make(**config: Any) -> MetaWorldEnv:
    """The environment of `EnvConfig(**config)`; what the workers of a `VectorEnv` call."""
    return MetaWorldEnv(EnvConfig(**config))


def _log_warning(message: str) -> None:
    # MuJoCo's own handler appends to a file in the current folder.
    logging.getLogger(__name__).warning("MuJoCo: %s", message)
