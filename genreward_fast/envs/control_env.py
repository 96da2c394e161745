"""One task of dm_control's suite as a gymnasium environment that renders on demand, with distractions or without."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Mapping
from typing import Any

from genreward_fast.envs.pixel_env import PixelEnv  # first: it selects the OpenGL backend before mujoco is imported

# isort: split
import numpy as np

from genreward_fast.envs.control_config import DEFAULT_CAMERA, ControlConfig
from genreward_fast.envs.control_tasks import domain_and_task
from genreward_fast.envs.distractions import Distractions
from genreward_fast.envs.renderer import Renderer
from genreward_fast.errors import UserError

_DEFAULT_CAMERAS = {"quadruped": 2}  # elsewhere the first


class ControlEnv(PixelEnv):
    """A dm_control task whose start is drawn anew at each reset.

    Observation: (D,) float64, the task's own observations one after the other. Action: (A,) float32 in [-1, 1], which
    stands for the task's own bounds; values beyond are clipped. Reward: the task's, 0 to 1 a simulator step. An
    episode is terminated where dm_control's discount is 0 and truncated after `config.steps` steps; dm_control's own
    time limits do not apply. There is no success: `info["success"]` is False.

    An episode, with its distractions, depends on nothing but its random draws: `reset(seed=s)` gives the same one
    whatever came before, and the resets without a seed that follow it give the same sequence of episodes.

    Raises:
        UserError: dm_control is missing, cannot run the task, or the model has no such camera; the backgrounds' folder
            is missing or has too few videos.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 40}  # noqa: RUF012  gymnasium declares it as a plain dict

    def __init__(self, config: ControlConfig) -> None:
        self.config = config
        self._draws = np.random.RandomState(0)
        domain, task = domain_and_task(config.task)
        options = {"random": self._draws, "time_limit": float("inf")}
        self.simulation = _suite(domain).load(domain, task, task_kwargs=options)
        self._model, self._data = self.simulation.physics.model.ptr, self.simulation.physics.data.ptr
        self._camera = self._camera_number(domain)
        self._distractions: Distractions | None = None
        if config.distraction != "none":
            self._distractions = Distractions(config, self._model, self._data, self._camera)
        spec = self.simulation.action_spec()
        self._action_center, self._action_reach = (spec.maximum + spec.minimum) / 2, (spec.maximum - spec.minimum) / 2
        size = sum(int(np.prod(spec.shape)) for spec in self.simulation.observation_spec().values())
        super().__init__(config.action_size, size)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode; see the class for what `seed` means. `info["success"]` is False."""
        super().reset(seed=seed)
        self._draws.seed(self.np_random.integers(2**32, size=4))
        distractions = int(self.np_random.integers(2**63))
        state = _flat(self.simulation.reset().observation)
        if self._distractions is not None:
            self._distractions.reset(distractions)
        if self._renderer is not None:
            self._renderer.upload_heightfields()
        self._steps, self._open = 0, True
        return state, {"success": False}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Applies an action `config.action_repeat` times, or until the episode is terminated.

        Args:
            action: (A,) float, clipped to [-1, 1].

        Raises:
            ValueError: the action has another shape, or a value in it is not finite.
            RuntimeError: there is no open episode.
        """
        control = self._action_center + self._action_reach * self._checked(action)
        total, terminated = 0.0, False
        for _ in range(self.config.action_repeat):
            moment = self.simulation.step(control)
            total += float(moment.reward)
            if self._distractions is not None:
                self._distractions.step()
            terminated = moment.last() and moment.discount == 0
            if terminated:
                break
        self._steps += 1
        truncated = not terminated and self._steps >= self.config.steps
        self._open = not (terminated or truncated)
        return _flat(moment.observation), total, terminated, truncated, {"success": False}

    def _pictures(self, sizes: tuple[int, ...], out: Mapping[int, np.ndarray] | None) -> dict[int, np.ndarray]:
        renderer = self.renderer
        with self._distractions.shown(renderer) if self._distractions is not None else contextlib.nullcontext():
            return renderer.render(sizes, out)

    def _make_renderer(self) -> Renderer:
        name = self._model.cam(self._camera).name
        return Renderer(self._model, self._data, name, quality=self.config.rendering == "quality")

    def _camera_number(self, domain: str) -> int:
        name = self.config.camera
        if name == DEFAULT_CAMERA:
            return _DEFAULT_CAMERAS.get(domain, 0)
        names = [self._model.cam(number).name for number in range(self._model.ncam)]
        if name not in names:
            raise UserError(
                f"camera {name!r}: {self.config.task} has none of that name; choose one of {', '.join(names)}"
            )
        return names.index(name)


def make(**config: Any) -> ControlEnv:
    """The environment of `ControlConfig(**config)`; what the workers of a `VectorEnv` call."""
    return ControlEnv(ControlConfig(**config))


def _suite(domain: str) -> Any:
    if importlib.util.find_spec("dm_control") is None:
        raise UserError('tasks of dm_control need it installed: pip install "genreward-fast[control]"')
    if domain == "quadruped" and not hasattr(np, "in1d"):
        raise UserError(f"quadruped: dm_control calls what numpy {np.__version__} no longer has; install numpy<2.4")
    return importlib.import_module("dm_control.suite")


def _flat(observation: Mapping[str, Any]) -> np.ndarray:
    return np.concatenate([np.ravel(value) for value in observation.values()]).astype(np.float64)
