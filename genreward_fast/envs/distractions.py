"""The distractions of one environment: colours, camera and background (Stone et al. 2021, arXiv 2101.02722).

Each has a random generator of its own, so that leaving one out changes nothing in the others. They move with the
simulator's steps, whether a picture is asked for or not; what a picture needs is done when one is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from genreward_fast.envs.backgrounds import Video, find_videos
from genreward_fast.envs.control_config import ControlConfig
from genreward_fast.envs.control_tasks import domain_and_task
from genreward_fast.envs.distracting_camera import DistractingCamera
from genreward_fast.envs.renderer import Renderer

BACKGROUND_SIZES = {"fast": 256, "quality": 800}
_COLOR_STD = 0.03  # of a step, times β_rgb
_GROUND = "grid"
_GROUND_ALPHA = {"reacher": 0.0, "ball_in_cup": 0.3, "cartpole": 0.3, "finger": 0.3}  # elsewhere as it is


@dataclass(frozen=True)
class Difficulty:
    """A published one: β_cam = β_rgb = `beta`, and how many videos there are; None for all, which are DAVIS's 60."""

    beta: float
    videos: int | None


DIFFICULTIES = {"easy": Difficulty(0.1, 4), "medium": Difficulty(0.2, 8), "hard": Difficulty(0.3, None)}


class Colors:
    """Every material's colour, drawn from within β of its own; when dynamic, a Gaussian random walk in those bounds."""

    def __init__(self, model: Any, beta: float, *, dynamic: bool):
        self._rgb = model.mat_rgba[:, :3]  # a view: writing to it changes the model
        self._low, self._high = np.clip(self._rgb - beta, 0, 1), np.clip(self._rgb + beta, 0, 1)
        self._std = _COLOR_STD * beta * dynamic

    def reset(self, random: np.random.Generator) -> None:
        self._random = random
        self._rgb[:] = random.uniform(self._low, self._high)

    def step(self) -> None:
        if self._std:
            walked = self._rgb + self._std * self._random.standard_normal(self._rgb.shape)
            self._rgb[:] = np.clip(walked, self._low, self._high)


class Background:
    """A video in place of the sky, seen through the ground where the paper makes that translucent.

    An episode shows one picture of one of the videos; when dynamic, it begins there and plays forward or backward,
    turning round at the ends.
    """

    def __init__(self, model: Any, videos: Sequence[Video], size: int, ground_alpha: float, *, dynamic: bool):
        self._videos, self._size, self._dynamic = videos, size, dynamic
        skies = np.flatnonzero(model.tex_type == mujoco.mjtTexture.mjTEXTURE_SKYBOX.value)
        self._texture = int(skies[0])
        # A sky of one square instead of six is repeated on all sides.
        model.tex_width[self._texture] = model.tex_height[self._texture] = size
        start = int(model.tex_adr[self._texture])
        self._pixels = model.tex_data[start : start + 3 * size * size]
        model.mat(_GROUND).rgba[3] *= ground_alpha
        self._drawn: np.ndarray | None = None

    def reset(self, random: np.random.Generator) -> None:
        self._pictures = self._videos[int(random.integers(len(self._videos)))](self._size)
        self._index = int(random.integers(len(self._pictures)))
        self._direction = int(random.choice((-1, 1)))

    def step(self) -> None:
        if self._dynamic and len(self._pictures) > 1:
            if not 0 <= self._index + self._direction < len(self._pictures):
                self._direction = -self._direction
            self._index += self._direction

    def draw(self, renderer: Renderer) -> None:
        """Hands the present picture to the renderer, if it is another one than the last."""
        picture = self._pictures[self._index]
        if picture is not self._drawn:
            self._pixels[:] = picture[:, ::-1].reshape(-1)  # the sky is a cube that is seen from inside
            renderer.upload_texture(self._texture)
            self._drawn = picture


class Distractions:
    """What `config` asks for, on a model whose default is left as it was where nothing is asked for.

    Args:
        model, data: MuJoCo's.
        camera: the number of the camera that pictures are taken with.

    Raises:
        UserError: the backgrounds' folder is missing or has too few videos.
    """

    def __init__(self, config: ControlConfig, model: Any, data: Any, camera: int):
        difficulty, dynamic = DIFFICULTIES[config.distraction], config.dynamic_distractions
        self._data, self._camera_id = data, camera
        self._colors = self._camera = self._background = None
        if "color" in config.distraction_types:
            self._colors = Colors(model, difficulty.beta, dynamic=dynamic)
        if "camera" in config.distraction_types:
            self._camera = DistractingCamera(model, data, camera, difficulty.beta, dynamic=dynamic)
        if "background" in config.distraction_types:
            videos = find_videos(config.backgrounds, config.split, difficulty.videos)
            alpha = _GROUND_ALPHA.get(domain_and_task(config.task)[0], 1.0)
            size = BACKGROUND_SIZES[config.rendering]
            self._background = Background(model, videos, size, alpha, dynamic=dynamic)

    def reset(self, seed: int) -> None:
        """Draws what an episode begins with; `data` holds its first state."""
        generators = np.random.SeedSequence(seed).spawn(3)
        for distraction, generator in zip((self._colors, self._camera, self._background), generators):
            if distraction is not None:
                distraction.reset(np.random.default_rng(generator))

    def step(self) -> None:
        """Moves on by one simulator step."""
        for distraction in (self._colors, self._camera, self._background):
            if distraction is not None:
                distraction.step()

    @contextlib.contextmanager
    def shown(self, renderer: Renderer) -> Iterator[None]:
        """While it is entered, `renderer` takes pictures with the distractions in them."""
        if self._background is not None:
            self._background.draw(renderer)
        if self._camera is None:
            yield
            return
        position, axes = self._data.cam_xpos[self._camera_id], self._data.cam_xmat[self._camera_id]
        default = position.copy(), axes.copy()
        moved = self._camera.pose()
        position[:], axes[:] = moved[0], moved[1].reshape(-1)
        try:
            yield
        finally:
            position[:], axes[:] = default
