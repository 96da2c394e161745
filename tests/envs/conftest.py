"""Chooses the OpenGL backend before any test module imports mujoco."""

from genreward_fast.envs import gl

gl.select(required=False)
