"""Square pictures of any size from one camera: one OpenGL context, one scene update, one viewport per size."""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from genreward_fast.envs import gl
from genreward_fast.errors import UserError

gl.import_mujoco()
import mujoco  # noqa: E402

UPSIDE_DOWN = frozenset({"corner", "corner2", "corner3", "corner4"})
"""The cameras of Meta-World that hang upside down."""

_live: weakref.WeakSet[Renderer] = weakref.WeakSet()


class Renderer:
    """Renders a MuJoCo model's camera into square, upright RGB pictures.

    In the fast mode there are no shadows, no reflections and no multisampling: what those cost does not depend on the
    picture's size, and is most of the time of a small picture. Pixels differ between the modes, so training and
    evaluation must use the same one. A renderer must be used in the thread that made it.

    Args:
        model: what to render; its rendering settings are read once, here, and left as they are.
        data: the state to render, read at every `update`.
        camera: the name of a camera of the model.
        quality: render with everything the model asks for (shadows, reflections, multisampling).
        max_size: side in pixels of the largest picture expected; a larger one later costs a new frame buffer.

    Raises:
        UserError: the model has no such camera, or no OpenGL context can be made.
    """

    def __init__(
        self, model: mujoco.MjModel, data: mujoco.MjData, camera: str, *, quality: bool = False, max_size: int = 480
    ) -> None:
        self._model, self._data = model, data
        self._context: Any = None
        self._gl: Any = None
        self._size = max_size
        camera_id = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA.value, camera)
        if camera_id < 0:
            names = ", ".join(model.cam(i).name for i in range(model.ncam))
            raise UserError(f"camera {camera!r}: the model has none of that name; choose one of {names}")
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = camera_id
        # Rolling the camera by 180° rotates the picture without touching its pixels; reversing the columns of every
        # picture in memory would cost twenty times what reversing its rows costs.
        self._roll = camera in UPSIDE_DOWN
        self._option, self._perturbation = mujoco.MjvOption(), mujoco.MjvPerturb()
        self._option.flags[mujoco.mjtVisFlag.mjVIS_RANGEFINDER] = 0  # rays that only measure
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        if not quality:
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._gl = gl.make_context(max_size)
        self._gl.make_current()
        self._context = _make_render_context(model, max_size, quality)
        self._rectangles: dict[int, mujoco.MjrRect] = {}
        self._scratch: dict[int, np.ndarray] = {}
        _live.add(self)
        # Handlers run in the opposite order, and each library that uses EGL shuts it down in one: ours must be last.
        atexit.unregister(_close_all)
        atexit.register(_close_all)

    def update(self) -> None:
        """Takes the scene from the simulation's present state."""
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(
            self._model, self._data, self._option, self._perturbation, self._camera, everything, self._scene
        )
        if self._roll:
            for camera in self._scene.camera:
                camera.up *= -1

    def draw(self, size: int) -> None:
        """Starts drawing the scene, `size` × `size` pixels; `read` waits for it."""
        if self._context is None:
            raise RuntimeError("the renderer is closed")
        self._gl.make_current()
        if size > self._size:
            mujoco.mjr_resizeOffscreen(size, size, self._context)
            self._size = size
        if size not in self._rectangles:
            self._rectangles[size] = mujoco.MjrRect(0, 0, size, size)
            self._scratch[size] = np.empty((size, size, 3), np.uint8)
        mujoco.mjr_render(self._rectangles[size], self._scene, self._context)

    def upload_texture(self, texture: int) -> None:
        """Takes a texture of the model, given by its number, over again: its pixels have changed."""
        if self._context is None:
            raise RuntimeError("the renderer is closed")
        self._gl.make_current()
        mujoco.mjr_uploadTexture(self._model, self._context, texture)

    def upload_heightfields(self) -> None:
        """Takes the model's height fields over again: a task may draw a new ground for an episode."""
        self._gl.make_current()
        for number in range(self._model.nhfield):
            mujoco.mjr_uploadHField(self._model, self._context, number)

    def finish(self) -> None:
        """Waits until everything is drawn (for measurements; `read` waits by itself)."""
        mujoco.mjr_finish()

    def read(self, size: int, out: np.ndarray) -> None:
        """Copies the picture last drawn, which was `size` pixels wide, into `out`, (size, size, 3) uint8."""
        scratch = self._scratch[size]
        mujoco.mjr_readPixels(scratch, None, self._rectangles[size], self._context)
        np.copyto(out, scratch[::-1], casting="no")  # OpenGL's first row is the lowest one

    def render(self, sizes: Iterable[int], out: Mapping[int, np.ndarray] | None = None) -> dict[int, np.ndarray]:
        """Pictures of the present state.

        Args:
            sizes: the sides of the square pictures, in pixels.
            out: size -> (size, size, 3) uint8 to write into; without it arrays are made.

        Returns:
            size -> (size, size, 3) uint8, upright RGB; the arrays of `out` where given. {} for no sizes, at no cost.
        """
        pictures: dict[int, np.ndarray] = {}
        for size in sizes:
            if size in pictures:
                continue
            if not pictures:
                self.update()
            picture = np.empty((size, size, 3), np.uint8) if out is None else out[size]
            self.draw(size)
            self.read(size, picture)
            pictures[size] = picture
        return pictures

    def close(self) -> None:
        """Frees the OpenGL context. Closing twice does no harm."""
        if self._context is not None:
            self._gl.make_current()
            self._context.free()
            self._context = None
        if self._gl is not None:
            self._gl.free()
            self._gl = None
        _live.discard(self)

    def __del__(self) -> None:
        if getattr(self, "_gl", None) is not None:
            self.close()


def _make_render_context(model: mujoco.MjModel, size: int, quality: bool) -> mujoco.MjrContext:
    """MuJoCo reads these settings off the model, once; they are put back, since the model is not the renderer's."""
    screen, detail = model.vis.global_, model.vis.quality
    saved = screen.offwidth, screen.offheight, detail.offsamples, detail.shadowsize
    screen.offwidth = screen.offheight = size
    if not quality:
        detail.offsamples = detail.shadowsize = 0
    try:
        context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
    finally:
        screen.offwidth, screen.offheight, detail.offsamples, detail.shadowsize = saved
    mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, context)
    return context


def _close_all() -> None:
    # While the interpreter is going down it is too late: the OpenGL bindings are gone before the objects are.
    for renderer in list(_live):
        renderer.close()
