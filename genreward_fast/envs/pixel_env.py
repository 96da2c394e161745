"""What the environments of both suites share: one episode at a time, checked actions, and pictures on demand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from genreward_fast.envs.renderer import Renderer  # first: it selects the OpenGL backend before mujoco is imported

# isort: split
import gymnasium
import numpy as np


class PixelEnv(gymnasium.Env):
    """A simulated task, of which a subclass makes the renderer.

    Attributes:
        action_size: A.
    """

    render_mode = "rgb_array"
    action_size: int

    def __init__(self, action_size: int, state_size: int) -> None:
        self.action_size = action_size
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (action_size,), np.float32)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (state_size,), np.float64)
        self._renderer: Renderer | None = None
        self._steps = 0
        self._open = False

    def _checked(self, action: np.ndarray) -> np.ndarray:
        """The action, clipped to [-1, 1].

        Raises:
            ValueError: it has another shape than (A,), or a value in it is not finite.
            RuntimeError: there is no open episode.
        """
        if not self._open:
            raise RuntimeError("no open episode: call reset() before the first step and after an episode's last")
        action = np.asarray(action, np.float32)
        if action.shape != (self.action_size,):
            raise ValueError(f"an action has shape ({self.action_size},), not {action.shape}")
        if not np.isfinite(action).all():
            raise ValueError(f"an action must be finite, not {action.tolist()}")
        return np.clip(action, -1.0, 1.0)

    def _make_renderer(self) -> Renderer:
        raise NotImplementedError

    @property
    def renderer(self) -> Renderer:
        """The renderer, made when it is first needed."""
        if self._renderer is None:
            self._renderer = self._make_renderer()
        return self._renderer

    def render_sizes(self, sizes: Iterable[int], out: Mapping[int, np.ndarray] | None = None) -> dict[int, np.ndarray]:
        """Upright RGB pictures of the present state, size -> (size, size, 3) uint8, written into `out` if it is given.

        Raises:
            UserError: no OpenGL context can be made (at the first call).
        """
        sizes = tuple(sizes)
        return self._pictures(sizes, out) if sizes else {}

    def _pictures(self, sizes: tuple[int, ...], out: Mapping[int, np.ndarray] | None) -> dict[int, np.ndarray]:
        return self.renderer.render(sizes, out)

    def render(self) -> np.ndarray:  # type: ignore[override]
        """(480, 480, 3) uint8."""
        return self.render_sizes((480,))[480]

    def close(self) -> None:
        """Frees the OpenGL context. The environment can still be stepped."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
