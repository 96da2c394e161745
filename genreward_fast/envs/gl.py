"""The OpenGL backend: choosing one, making a context, and finding out safely whether it works."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

from genreward_fast.envs.subprocesses import python_command, python_environment
from genreward_fast.errors import UserError

_LIBRARIES = {"egl": ("libEGL.so.1", "EGL"), "osmesa": ("libOSMesa.so.8", "OSMesa")}
_MODULES = {
    "egl": "mujoco.egl",
    "osmesa": "mujoco.osmesa",
    "glfw": "mujoco.glfw",
    "glx": "mujoco.glfw",
    "cgl": "mujoco.cgl",
}
_DISABLED = ("disable", "disabled", "off", "false", "0")
_INSTALL = (
    "install a software one with `apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0` (EGL) "
    "or `apt-get install libosmesa6`"
)
_REMEDY = f"set MUJOCO_GL to another one (egl, osmesa), or {_INSTALL}"


@dataclass(frozen=True)
class Probe:
    """What `probe` found.

    Attributes:
        backend: "egl", "osmesa" or what MUJOCO_GL names; "" if there is none.
        works: whether a tiny picture could be rendered.
        device: the driver's name for what renders; a name with "llvmpipe" in it is software.
        error: one line that says what went wrong; "" if nothing did.
    """

    backend: str
    works: bool
    device: str = ""
    error: str = ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _loads(backend: str) -> bool:
    soname, name = _LIBRARIES[backend]
    for candidate in (soname, ctypes.util.find_library(name)):
        if candidate:
            try:
                ctypes.CDLL(candidate)
            except OSError:
                continue
            return True
    return False


def select(*, required: bool = True) -> str:
    """The backend to render with; sets MUJOCO_GL to it, for MuJoCo and for child processes.

    MUJOCO_GL wins if it is set; else EGL if its library loads, else OSMesa. Call it before mujoco is imported.

    Args:
        required: whether having none is an error; if not, "" is returned then.

    Raises:
        UserError: MUJOCO_GL names no backend that can render without a window system, or no library is there.
    """
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if chosen in _DISABLED:
        if not required:
            return ""
        raise UserError(f"MUJOCO_GL={chosen!r} turns rendering off; unset it to choose a backend automatically")
    if chosen:
        if chosen not in _MODULES:
            raise UserError(f"MUJOCO_GL={chosen!r}: not one of {', '.join(_MODULES)}; unset it to choose automatically")
        return chosen
    if platform.system() == "Darwin":
        return "cgl"  # part of the system
    for backend in _LIBRARIES:
        if _loads(backend):
            os.environ["MUJOCO_GL"] = backend
            return backend
    if not required:
        return ""
    raise UserError(f"no OpenGL library to render with (neither libEGL nor libOSMesa loads): {_INSTALL}")


def import_mujoco() -> None:
    """Imports mujoco with the backend of `select`; without one, the simulator still works.

    Raises:
        UserError: MUJOCO_GL names a backend that is unknown, or whose library is missing.
    """
    backend = select(required=False)
    try:
        importlib.import_module("mujoco")
    except Exception as error:  # importing mujoco loads the backend, and each one fails in its own way
        raise UserError(f"MuJoCo cannot load the OpenGL backend {backend!r} ({_one_line(error)}); {_REMEDY}") from error


def make_context(size: int) -> Any:
    """An off-screen OpenGL context, with `make_current()` and `free()`, for square pictures of up to `size` pixels.

    Raises:
        UserError: the backend cannot make one.
    """
    backend = select()
    try:
        module = importlib.import_module(_MODULES[backend])
        return module.GLContext(size, size)
    except Exception as error:  # every backend fails in its own way: ImportError, RuntimeError, AttributeError, GLError
        raise UserError(
            f"the OpenGL backend {backend!r} cannot make a context ({_one_line(error)}); {_REMEDY}"
        ) from error


def device_name() -> str:
    """The driver's name for what renders in the current context, such as "NVIDIA H100/PCIe" or "llvmpipe (...)"."""
    from OpenGL import GL

    name = GL.glGetString(GL.GL_RENDERER)
    return name.decode(errors="replace") if name else ""


def probe(timeout: float = 60.0) -> Probe:
    """Renders a tiny picture in a process of its own, since a broken driver can take its process down.

    Args:
        timeout: seconds to wait for it.
    """
    try:
        backend = select()
    except UserError as error:
        return Probe(os.environ.get("MUJOCO_GL", ""), False, error=str(error))
    try:
        result = subprocess.run(
            python_command(__name__),
            env=python_environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return Probe(backend, False, error=f"rendering with {backend} did not finish in {timeout:g} s")
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        return Probe(backend, False, error=f"rendering with {backend} ended with status {result.returncode}: {last}")
    return Probe(**json.loads(result.stdout.splitlines()[-1]))


def _render_once() -> Probe:
    backend = select()
    from genreward_fast.envs.renderer import Renderer, mujoco

    scene = """<mujoco><worldbody><light pos="0 0 3"/><geom type="sphere" size="0.4" rgba="1 0 0 1"/>
        <camera name="view" pos="0 -2 0" euler="90 0 0"/></worldbody></mujoco>"""
    model = mujoco.MjModel.from_xml_string(scene)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = Renderer(model, data, "view", max_size=16)
    picture = renderer.render((16,))[16]
    device = device_name()
    renderer.close()
    red = int(picture[8, 8, 0])
    works = red > 2 * int(picture[8, 8, 2]) and red > 40 and int(picture[0, 0, 0]) < red
    return Probe(backend, works, device, "" if works else f"{backend} rendered a wrong picture")


if __name__ == "__main__":
    try:
        found = _render_once()
    except UserError as problem:
        found = Probe(os.environ.get("MUJOCO_GL", ""), False, error=str(problem))
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
