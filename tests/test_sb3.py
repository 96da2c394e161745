"""Our reward in Stable-Baselines3: the wrapper pays what Gymnasium's does, and the buffer holds complete rewards."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from genreward_fast.errors import UserError
from genreward_fast.types import FrameSpec
from genreward_fast.wrappers import GenRewardVectorEnv

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.vec_env import DummyVecEnv

from genreward_fast.sb3 import GenRewardReplayBuffer, GenRewardVecEnv

EXAMPLES = Path(__file__).parents[1] / "examples"
LENGTHS = (9, 3, 10)


class Counting(gymnasium.Env):
    """Row t of episode e shows and observes the grey 20·e + t, and pays t; episodes end after `LENGTHS` steps."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 1}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(0, 255, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, shift=0, render_mode="rgb_array"):
        self.shift, self.render_mode = shift, render_mode
        self.episode, self.row = -1, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.row = self.episode + 1, 0
        return self._observation(), {}

    def step(self, action):
        self.row += 1
        ended = self.row == LENGTHS[(self.episode + self.shift) % len(LENGTHS)]
        return self._observation(), float(self.row - 1), False, ended, {}

    def render(self):
        return np.full((6, 8, 3), self._observation(), np.uint8)

    def _observation(self):
        return np.asarray([20 * self.episode + self.row], np.float32)


class Mixed:
    """Window 4; pays each fresh row 100 + its number, and a little for its action and the window's clip."""

    learn_steps = 0
    frozen = True

    def __init__(self, interval, little=1e-3):
        self.frames = FrameSpec(
            window=4, interval=interval, feature_size=2, feature_dim=1, clip_size=2, clip_steps=(0, 3)
        )
        self.little = little

    def features(self, frames):
        return frames[:, 0, 0, :1].float()

    def parts(self, window):
        rest = window.action.sum(-1) + window.clip.float().mean((1, 2, 3, 4))[:, None]
        paid = window.features[..., 0] % 20 + 100 + self.little * rest
        paid[:, : 4 - window.fresh] = 0
        return {"rows": paid, "rows_raw": window.features[..., 0]}


def counting(count, **options):
    return DummyVecEnv([lambda i=i: Counting(shift=i, **options) for i in range(count)])


@pytest.mark.parametrize("interval", [2, 4, 5])
@pytest.mark.parametrize("credit", ["closing", "spread"])
def test_it_pays_what_the_gymnasium_wrapper_pays(interval, credit):
    environments = [lambda i=i: Counting(shift=i) for i in range(3)]
    theirs = SyncVectorEnv(environments, autoreset_mode=AutoresetMode.SAME_STEP)
    expected = GenRewardVectorEnv(theirs, Mixed(interval), credit=credit)
    venv = GenRewardVecEnv(counting(3), Mixed(interval), credit=credit)
    first, _ = expected.reset()
    np.testing.assert_array_equal(venv.reset(), first)
    closed = 0
    for _ in range(40):
        actions = np.random.default_rng().uniform(-1, 1, (3, 2)).astype(np.float32)
        observation, reward, terminated, truncated, more = expected.step(actions)
        ours = venv.step(actions)
        np.testing.assert_array_equal(ours[0], observation)
        np.testing.assert_allclose(ours[1], reward, rtol=1e-6)
        np.testing.assert_array_equal(ours[2], terminated | truncated)
        for env, info in enumerate(ours[3]):
            assert ("genreward" in info) == bool("genreward" in more and more["_genreward"][env])
            for name in [name for name in info if name.startswith("genreward")]:
                np.testing.assert_array_equal(info[name], more[name][env])
                closed += 1
    assert closed > 20


@pytest.mark.parametrize("interval", [2, 4, 5])
def test_the_buffer_holds_each_step_once_with_its_whole_reward(interval):
    venv = GenRewardVecEnv(counting(2), Mixed(interval, little=0.0), credit="spread")
    buffer = GenRewardReplayBuffer(1000, venv.observation_space, venv.action_space, "cpu", n_envs=2)
    observation, rng = venv.reset(), np.random.default_rng()
    seen, waiting = [[], []], []
    for _ in range(60):
        actions = rng.uniform(-1, 1, (2, 2)).astype(np.float32)
        after, reward, done, infos = venv.step(actions)
        buffer.add(observation, after, actions, reward, done, infos)
        for env in range(2):
            seen[env].append((float(observation[env, 0]), actions[env], bool(done[env])))
        waiting.append(len(seen[0]) - buffer.pos)
        observation = after
        for env in range(2):
            for at in range(buffer.pos):
                grey, action, ended = seen[env][at]
                length = LENGTHS[(int(grey) // 20 + env) % len(LENGTHS)]
                row, windows = int(grey) % 20, range(0, length - 3, interval)
                covered = any(start <= row < start + 4 for start in windows)
                assert buffer.observations[at, env, 0] == grey
                assert buffer.rewards[at, env] == row + (100 + row if covered else 0)
                assert buffer.dones[at, env] == ended
                np.testing.assert_array_equal(buffer.actions[at, env], action)
    assert buffer.pos > 40
    assert max(waiting) <= 4 + interval  # nothing waits longer than until the next window closes


def test_what_is_refused(monkeypatch):
    with pytest.raises(UserError, match="render_mode"):
        GenRewardVecEnv(counting(1, render_mode=None), Mixed(4))
    venv = GenRewardVecEnv(counting(2), Mixed(4))
    venv.reset()
    with pytest.raises(UserError, match="environment 1 is not finite"):
        venv.step(np.asarray([[0, 0], [np.nan, 0]]))
    monkeypatch.setitem(sys.modules, "stable_baselines3.common.buffers", None)
    monkeypatch.delitem(sys.modules, "genreward_fast.sb3")
    with pytest.raises(UserError, match=r"genreward-fast\[sb3\]"):
        importlib.import_module("genreward_fast.sb3")


@pytest.mark.parametrize("name", ["sb3_ppo_closing", "sb3_sac_spread"])
def test_the_examples_learn_from_nothing_but_our_reward(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](steps=192, envs=2)
    finally:
        torch.set_num_threads(threads)
        sys.modules.pop("point_mass", None)
    assert model.num_timesteps == 192
    assert "FB is frozen" in capsys.readouterr().out
    if name == "sb3_sac_spread":
        buffer = model.replay_buffer
        paid = buffer.rewards[: buffer.pos]
        assert buffer.pos == 192 // 2  # the last window closes with the last step
        assert (paid != 0).all()  # the environment pays nothing; both windows cover all 32 steps of an episode
        assert len(np.unique(paid[:16])) == 2  # before FB is frozen r_video / 16 on each row of its window
