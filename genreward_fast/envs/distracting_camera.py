"""A camera that stands, or wanders, near where the task puts it (Stone et al. 2021, arXiv 2101.02722, β_cam)."""

from __future__ import annotations

from typing import Any

import numpy as np

# Published for β = 1 and a camera 4 units away; lengths are proportional to the distance.
_ANGLE = np.pi / 2  # horizontally, vertically and of roll, to each side
_ZOOM_IN, _ZOOM_OUT = 0.5, 1.5  # of the distance
_SPEED, _SPEED_STD, _SPEED_DISTANCE = 0.4, 0.1, 4.0  # a step
_ROLL_SPEED, _ROLL_SPEED_STD = np.pi / 50, np.pi / 300  # radians a step

_STRAIGHT_DOWN = 0.9
_UP = np.array([0.0, 0.0, 1.0])


class DistractingCamera:
    """The pose of one camera of a model, apart from the model's own.

    It is drawn uniformly around the default one in spherical coordinates, and when dynamic moves with a velocity that
    is a bounded Gaussian random walk and never leaves those bounds. It looks at what the default camera looks at. One
    that follows the agent is bounded around the agent, one that is fixed in the world around the world's origin. It
    never goes below the horizon of that point, unless the default one looks straight down (reacher).

    Args:
        model, data: of MuJoCo; `data` must hold the state after a reset or a step.
        camera: its number.
        beta: β_cam, in [0, 1].
        dynamic: whether it moves within an episode.
    """

    def __init__(self, model: Any, data: Any, camera: int, beta: float, *, dynamic: bool):
        self._data, self._camera = data, camera
        self._fixed = int(model.cam_mode[camera]) == 0 and int(model.cam_bodyid[camera]) == 0
        self._beta, self._dynamic = beta, dynamic

    def reset(self, random: np.random.Generator) -> None:
        """Draws the episode's first pose and velocity."""
        beta, dynamic = self._beta, self._dynamic
        self._random = random
        self._target = self._default_target()
        self._default_axes = self._axes_now().copy()
        self._looks_down = -self._default_axes[2, 2] < -_STRAIGHT_DOWN
        radius, self._azimuth, polar = to_spherical(self._data.cam_xpos[self._camera] - self._center())
        reach = _ANGLE * beta
        low, high = polar - reach, polar + reach
        if not self._looks_down:
            low, high = np.clip((low, high), 0, np.pi / 2)
        self._low = np.array([radius * (1 - _ZOOM_IN * beta), -reach, low])
        self._high = np.array([radius * (1 + _ZOOM_OUT * beta), reach, high])
        self._roll_reach = reach
        self._place = random.uniform(self._low, self._high)
        self._roll = random.uniform(-reach, reach)

        self._speed = _SPEED * beta * radius / _SPEED_DISTANCE * dynamic
        self._speed_std = _SPEED_STD * beta * radius / _SPEED_DISTANCE * dynamic
        self._roll_speed = _ROLL_SPEED * beta * dynamic
        self._roll_speed_std = _ROLL_SPEED_STD * beta * dynamic
        direction = random.standard_normal(3)
        self._velocity = direction / np.linalg.norm(direction) * random.uniform(0, self._speed)
        self._roll_velocity = random.uniform(-self._roll_speed, self._roll_speed)

    def step(self) -> None:
        """Moves on by one simulator step."""
        if not self._dynamic:
            return
        velocity = self._velocity + self._speed_std * self._random.standard_normal(3)
        velocity *= min(1.0, self._speed / max(float(np.linalg.norm(velocity)), 1e-12))
        before = self._offset()
        self._place = np.clip(self._near_default(before + velocity), self._low, self._high)
        self._velocity = self._offset() - before

        speed = self._roll_velocity + self._roll_speed_std * self._random.standard_normal()
        roll = self._roll + np.clip(speed, -self._roll_speed, self._roll_speed)
        roll = np.clip(roll, -self._roll_reach, self._roll_reach)
        self._roll, self._roll_velocity = roll, roll - self._roll

    def pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Position (3,) and axes (3, 3) in the world, its columns right, up and backward; `data` holds the default."""
        position = self._center() + self._offset()
        target = self._target if self._fixed else self._default_target()
        forward = (target - position) / np.linalg.norm(target - position)
        axes = turned(self._default_axes, forward) if self._looks_down else level(forward)
        sine, cosine = np.sin(self._roll), np.cos(self._roll)
        return position, axes @ np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])

    def _center(self) -> np.ndarray:
        return np.zeros(3) if self._fixed else self._data.subtree_com[1]

    def _axes_now(self) -> np.ndarray:
        return self._data.cam_xmat[self._camera].reshape(3, 3)

    def _default_target(self) -> np.ndarray:
        """Ahead of the default camera, as far away as the agent's centre of mass is."""
        position = self._data.cam_xpos[self._camera]
        return position - self._axes_now()[:, 2] * np.linalg.norm(position - self._data.subtree_com[1])

    def _offset(self) -> np.ndarray:
        radius, azimuth, polar = self._place
        return to_cartesian(radius, self._azimuth + azimuth, polar)

    def _near_default(self, offset: np.ndarray) -> np.ndarray:
        """(radius, azimuth from the default's, polar angle), of the two ways to write a direction the nearer one."""
        radius, azimuth, polar = to_spherical(offset)
        azimuth = (azimuth - self._azimuth + np.pi) % (2 * np.pi) - np.pi
        if self._looks_down and abs(azimuth) > np.pi / 2:  # past the pole, where angles begin anew on the other side
            azimuth, polar = azimuth - np.copysign(np.pi, azimuth), -polar
        return np.array([radius, azimuth, polar])


def to_spherical(offset: np.ndarray) -> tuple[float, float, float]:
    """(radius, azimuth around z, polar angle from z) of a vector (3,)."""
    x, y, z = offset
    return float(np.linalg.norm(offset)), float(np.arctan2(y, x)), float(np.arctan2(np.hypot(x, y), z))


def to_cartesian(radius: float, azimuth: float, polar: float) -> np.ndarray:
    """The inverse of `to_spherical`."""
    across = radius * np.sin(polar)
    return np.array([across * np.cos(azimuth), across * np.sin(azimuth), radius * np.cos(polar)])


def level(forward: np.ndarray) -> np.ndarray:
    """Axes of a camera that looks along `forward`, a unit vector that is not vertical, with the horizon level."""
    right = np.cross(forward, _UP)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(right, forward), -forward], axis=1)


def turned(axes: np.ndarray, forward: np.ndarray) -> np.ndarray:
    """`axes` after the smallest turn that makes them look along `forward`, a unit vector (Rodrigues' formula)."""
    now = -axes[:, 2]
    x, y, z = np.cross(now, forward)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return (np.eye(3) + cross + cross @ cross / (1 + now @ forward)) @ axes
