import os
import sys

import pytest

from genreward_fast.envs import gl
from genreward_fast.errors import UserError


def test_mujoco_gl_is_respected(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "OSMesa")
    assert gl.select() == "osmesa"


@pytest.mark.parametrize(("loads", "chosen"), [({"egl", "osmesa"}, "egl"), ({"osmesa"}, "osmesa")])
def test_egl_is_preferred(monkeypatch, loads, chosen):
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.setattr(gl, "_loads", loads.__contains__)
    assert gl.select() == chosen
    assert os.environ["MUJOCO_GL"] == chosen


def test_without_a_library_the_packages_are_named(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.setattr(gl, "_loads", lambda backend: False)
    monkeypatch.setattr(gl.platform, "system", lambda: "Linux")
    with pytest.raises(UserError, match=r"libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0.*libosmesa6"):
        gl.select()
    assert gl.select(required=False) == ""
    found = gl.probe()
    assert not found.works
    assert "libegl1" in found.error


@pytest.mark.parametrize(("value", "says"), [("vulkan", "not one of"), ("off", "turns rendering off")])
def test_values_that_cannot_render_are_refused(monkeypatch, value, says):
    monkeypatch.setenv("MUJOCO_GL", value)
    with pytest.raises(UserError, match=says):
        gl.select()


def test_probe_renders():
    found = gl.probe()
    assert found.works, found.error
    assert found.backend == os.environ["MUJOCO_GL"]
    assert found.device


def test_probe_survives_a_child_that_is_killed(monkeypatch):
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setattr(gl, "python_command", lambda module: [sys.executable, "-c", kill])
    found = gl.probe()
    assert not found.works
    assert "status -11" in found.error


def test_probe_gives_up_on_a_child_that_hangs(monkeypatch):
    monkeypatch.setattr(gl, "python_command", lambda module: [sys.executable, "-c", "import time; time.sleep(60)"])
    assert "did not finish" in gl.probe(timeout=0.5).error


def test_a_context_that_cannot_be_made_is_one_clear_line(monkeypatch):
    class Broken:
        @staticmethod
        def GLContext(width, height):
            raise ImportError("no display\nat all")

    monkeypatch.setitem(sys.modules, f"mujoco.{gl.select()}", Broken)
    with pytest.raises(UserError, match="no display at all") as caught:
        gl.make_context(8)
    assert "\n" not in str(caught.value)
