"""The worker processes with Meta-World in them."""

import os
import signal

import numpy as np
import pytest
import torch

from genreward_fast.envs.env_config import EnvConfig
from genreward_fast.envs.metaworld_env import MetaWorldEnv
from genreward_fast.envs.seeds import episode_seed
from genreward_fast.envs.vector import VectorEnv
from genreward_fast.errors import UserError


def test_workers_do_what_one_environment_does():
    config = EnvConfig("pick-place", episode_length=6)
    actions = np.random.default_rng(0).uniform(-1, 1, (9, 2, 4)).astype(np.float32)
    alone = MetaWorldEnv(config)
    alone.reset(seed=episode_seed(1, "train", 1, 0))
    with VectorEnv(
        config, 2, seed=1, split="train", sizes=(32, 48), sizes_at=lambda row: (32, 48) if row == 3 else (32,)
    ) as envs:
        step = envs.reset()
        assert not torch.equal(step.frames[32][0], step.frames[32][1])
        for t, action in enumerate(actions[:6], start=1):
            step = envs.step(action)
            _, reward, _, truncated, info = alone.step(action[1])
            assert step.reward[1].item() == np.float32(reward)
            assert step.success[1].item() == info["success"]
            assert step.is_last.tolist() == [truncated, truncated] == [t == 6, t == 6]
            assert set(step.frames) == ({32, 48} if t == 3 else {32})
            for size, picture in alone.render_sizes(step.frames).items():
                assert np.abs(step.frames[size][1].numpy().astype(int) - picture).mean() < 0.5
        os.kill(envs.pids[0], signal.SIGKILL)  # between episodes
        step = envs.step(actions[6])
        assert step.is_first.all()
        alone.reset(seed=episode_seed(1, "train", 1, 1))
        assert envs.restarts == 1
        assert envs.step(actions[7]).reward[1].item() == np.float32(alone.step(actions[7][1])[1])
    alone.close()


def test_a_backend_that_cannot_render_is_reported_from_the_worker(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "osmesa")  # what MuJoCo's EGL backend refuses
    envs = VectorEnv(EnvConfig("reach"), 1, seed=0, split="eval", sizes=(16,), sizes_at=lambda row: (16,))
    with pytest.raises(UserError, match="cannot load the OpenGL backend 'egl'") as caught:
        envs.reset()
    assert "\n" not in str(caught.value)
