"""The Gymnasium wrappers, on a toy environment whose frames and actions say which row they belong to."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn
from torch.nn import functional

from genreward_fast.errors import UserError
from genreward_fast.rewards.config import FBConfig, RewardConfig
from genreward_fast.rewards.genreward import GenReward
from genreward_fast.rewards.none import NoReward
from genreward_fast.types import FrameSpec
from genreward_fast.wrappers import GenRewardEnv, GenRewardVectorEnv

MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]


class Toy(gymnasium.Env):
    """Row t of episode e shows the grey 40·e + t, and pays t + 1; episodes end after `lengths[e]` steps."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 1}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(0, 255, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-2, 2, (2,), np.float32)

    def __init__(self, lengths=(9, 3, 9), render_mode="rgb_array"):
        self.lengths, self.render_mode = lengths, render_mode
        self.episode, self.row, self.renders = -1, 0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.row = self.episode + 1, 0
        return self._observation(), {}

    def step(self, action):
        self.row += 1
        ended = self.row == self.lengths[self.episode % len(self.lengths)]
        return self._observation(), float(self.row), False, ended, {}

    def render(self):
        self.renders += 1
        return np.full((6, 8, 3), 40 * self.episode + self.row, np.uint8)

    def _observation(self):
        return np.asarray([40 * self.episode + self.row], np.float32)


class Checking:
    """Window 4; checks that every window is of one episode and in order; pays each fresh row 10 + its row number."""

    learn_steps = 0
    frozen = True

    def __init__(self, interval=4, credit="closing", steps=(0, 2, 3)):
        self.frames = FrameSpec(
            window=4, interval=interval, feature_size=2, feature_dim=1, clip_size=3, clip_steps=steps
        )
        self.credit = credit
        self.fresh = []

    def features(self, frames):
        assert frames.shape[1:] == (2, 2, 3)
        return frames[:, 0, 0, :1].float()

    def parts(self, window):
        row = window.features[..., 0]
        assert torch.equal(row - row[:, :1], torch.arange(4.0).expand_as(row))
        assert window.clip.shape[2:] == (3, 3, 3)
        assert torch.equal(window.clip[..., 0, 0, 0].float(), row[:, list(self.frames.clip_steps)])
        torch.testing.assert_close(window.action[..., 0] * 200, row)  # the action taken at a row says its number
        torch.testing.assert_close(window.env_reward, row % 40 + 1)
        self.fresh.append(window.fresh)
        paid = row % 40 + 10
        paid[:, : 4 - window.fresh] = 0
        return {"rows": paid, "rows_raw": row}

    def score(self, window):
        return self.parts(window)["rows"]

    def update(self, batch):
        return {}

    def freeze(self, batches):
        return {}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def toys(mode, count=2, **options):
    return SyncVectorEnv([lambda i=i: Toy(lengths=(9 - i, 3, 9), **options) for i in range(count)], autoreset_mode=mode)


def play(envs, steps, mode):
    """Steps that say their row in the action; returns (observation before, moved, reward, info) of each."""
    observation, _ = envs.reset(seed=0)
    ended = np.zeros(envs.num_envs, bool)
    record = []
    for _ in range(steps):
        if mode is AutoresetMode.DISABLED and ended.any():
            observation, _ = envs.reset(options={"reset_mask": ended})
            ended = np.zeros_like(ended)
        moved = ~ended if mode is AutoresetMode.NEXT_STEP else np.ones_like(ended)
        # Bounds are ±2, so ±1 is half of them: the row arrives at the reward as row / 200.
        action = np.stack([observation[:, 0] / 100, np.zeros(envs.num_envs)], axis=1).astype(np.float32)
        following, reward, terminated, truncated, info = envs.step(action)
        record.append((observation[:, 0], moved, reward, info))
        observation, ended = following, (terminated | truncated) & moved
    return record


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("interval", [2, 4])
def test_closing_pays_the_windows_sum_at_the_step_that_closes_it(mode, interval):
    reward = Checking(interval)
    record = play(GenRewardVectorEnv(toys(mode), reward, env_reward="none"), 30, mode)
    closings = 0
    for rows, moved, paid, info in record:
        for env in range(2):
            row = int(rows[env]) % 40
            closes = moved[env] and row >= 3 and (row - 3) % interval == 0
            fresh = 4 if row == 3 else interval
            assert paid[env] == (sum(10 + r for r in range(row - fresh + 1, row + 1)) if closes else 0)
            assert bool("genreward" in info and info["_genreward"][env]) == closes
            closings += closes
    assert closings >= 6
    assert set(reward.fresh) == {4, interval}


@pytest.mark.parametrize("mode", MODES)
def test_spread_hands_the_rows_to_the_trainer(mode):
    record = play(GenRewardVectorEnv(toys(mode), Checking(2), credit="spread"), 30, mode)
    stored = [[], []]  # what a replay would hold: [episode and row, reward] of each transition
    for rows, moved, paid, info in record:
        for env in np.flatnonzero(moved):
            stored[env].append([rows[env], paid[env]])
            if "genreward" in info and info["_genreward"][env]:
                assert info["genreward"].shape == (2, 4)
                np.testing.assert_array_equal(
                    info["genreward/rows_raw"][env], [transition[0] for transition in stored[env][-4:]]
                )
                for transition, value in zip(stored[env][-4:], info["genreward"][env]):
                    transition[1] += value
    for env, length in enumerate([9, 8]):
        first = [value for row, value in stored[env] if row < 40]
        covered = 8  # windows end at rows 4, 6 and 8 of both first episodes
        assert first == [(t + 1) + (t + 10 if t < covered else 0) for t in range(length)]
        # The second episode is shorter than a window: the environment's reward alone.
        assert [value for row, value in stored[env] if 40 <= row < 80] == [1, 2, 3]


def test_the_environments_own_reward_is_kept_by_default():
    mode = AutoresetMode.SAME_STEP
    kept = play(GenRewardVectorEnv(toys(mode), Checking()), 12, mode)
    dropped = play(GenRewardVectorEnv(toys(mode), Checking(), env_reward="none"), 12, mode)
    for (rows, _, with_env, _), (_, _, without, _) in zip(kept, dropped):
        np.testing.assert_allclose(with_env - without, rows % 40 + 1)


def test_step_pays_whatever_the_rewards_own_credit_is():
    mode = AutoresetMode.SAME_STEP
    record = play(GenRewardVectorEnv(toys(mode), Checking(credit="spread"), env_reward="none"), 4, mode)
    assert record[3][2].tolist() == [46, 46]


def test_frames_are_rendered_only_when_they_are_wanted():
    reward = Checking()
    reward.frames = FrameSpec(window=4, interval=4, clip_size=3, clip_steps=(0, 3))
    reward.parts = lambda window: {"zero": torch.zeros(window.shape)}
    envs = GenRewardVectorEnv(toys(AutoresetMode.SAME_STEP, count=1), reward)
    play(envs, 8, AutoresetMode.SAME_STEP)
    assert envs.unwrapped.envs[0].renders == 5  # rows 0, 3, 4, 7 and 8
    nothing = GenRewardVectorEnv(toys(AutoresetMode.SAME_STEP, count=1, render_mode=None), NoReward())
    assert [step[2].tolist() for step in play(nothing, 3, AutoresetMode.SAME_STEP)] == [[1], [2], [3]]


def test_frames_from_a_callable():
    envs = toys(AutoresetMode.SAME_STEP, render_mode=None)
    calls = []

    def frames():
        calls.append(1)
        return np.stack([env.render() for env in envs.envs])

    record = play(GenRewardVectorEnv(envs, Checking(), frames=frames), 4, AutoresetMode.SAME_STEP)
    assert record[3][3]["_genreward"].all()
    assert calls


def test_a_single_environment():
    env = GenRewardEnv(Toy(), Checking(), env_reward="none")
    paid = []
    for length in (9, 3, 9):
        observation, _ = env.reset(seed=0)
        for step in range(length):
            observation, reward, _, truncated, info = env.step(np.asarray([observation[0] / 100, 0], np.float32))
            assert isinstance(reward, float)
            assert ("genreward" in info) == (step in (3, 7))
            if "genreward" in info:
                assert info["genreward"].shape == (4,)
            paid.append(reward)
        assert truncated
    expected = [0, 0, 0, 46, 0, 0, 0, 62, 0]
    assert paid == [*expected, 0, 0, 0, *expected]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_actions(bad):
    envs = GenRewardVectorEnv(toys(AutoresetMode.SAME_STEP), Checking())
    envs.reset()
    with pytest.raises(UserError, match="environment 1 is not finite"):
        envs.step(np.asarray([[0, 0], [bad, 0]], np.float32))
    single = GenRewardEnv(Toy(), Checking())
    single.reset()
    with pytest.raises(UserError, match="not finite"):
        single.step(np.asarray([bad, 0], np.float32))


@pytest.mark.parametrize("shape", [(2, 3), (1, 2), (2,), ()])
def test_actions_of_another_size(shape):
    envs = GenRewardVectorEnv(toys(AutoresetMode.SAME_STEP), Checking())
    envs.reset()
    with pytest.raises(UserError, match="2 numbers for each of 2 environments"):
        envs.step(np.zeros(shape, np.float32))


@pytest.mark.parametrize("steps", [3, 4])
def test_episodes_that_are_always_too_short_for_a_window(steps):
    gymnasium.register("Short-v0", Toy, max_episode_steps=steps)
    try:
        single = gymnasium.make("Short-v0", render_mode="rgb_array")
        several = gymnasium.make_vec("Short-v0", 2, "sync", render_mode="rgb_array")
    finally:
        del gymnasium.registry["Short-v0"]
    for wrapper, env in ((GenRewardEnv, single), (GenRewardVectorEnv, several)):
        if steps < 4:
            with pytest.raises(UserError, match="window of 4 steps is longer than the 3 steps"):
                wrapper(env, Checking())
        else:
            assert wrapper(env, Checking()).session.windows.spec.window == 4


def test_bad_environments_and_options():
    def vector(**options):
        return GenRewardVectorEnv(toys(AutoresetMode.SAME_STEP), Checking(), **options)

    with pytest.raises(UserError, match="render_mode"):
        GenRewardVectorEnv(toys(AutoresetMode.SAME_STEP, render_mode=None), Checking())
    for options in ({"credit": "last"}, {"env_reward": "sparse"}, {"update_every": 0}, {"batch_size": 9, "memory": 8}):
        with pytest.raises(UserError, match=next(iter(options))):
            vector(**options)
    discrete, unbounded = Toy(), Toy()
    discrete.action_space = gymnasium.spaces.Discrete(3)
    unbounded.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    with pytest.raises(UserError, match="Box"):
        GenRewardEnv(discrete, Checking())
    with pytest.raises(UserError, match="bounds"):
        GenRewardEnv(unbounded, Checking())
    sized = Checking()
    sized.action_size = 3
    with pytest.raises(UserError, match="action_size=3"):
        GenRewardEnv(Toy(), sized)
    for frames in (lambda: None, lambda: np.zeros((6, 8, 3), np.float32), lambda: np.zeros((6, 8), np.uint8)):
        with pytest.raises(UserError, match="frames"):
            GenRewardEnv(Toy(), Checking(), frames=frames).reset()


class TinyVideo(nn.Module):
    size, note, fingerprint = 8, "", "video"

    def forward(self, frames):
        return functional.adaptive_avg_pool3d(frames.permute(0, 4, 1, 2, 3).float() / 255 - 0.3, (2, 2, 2))


class TinyImage(nn.Module):
    size, dim, note, fingerprint = 4, 3, "", "image"

    def forward(self, frames):
        return frames.float().mean((1, 2)) / 255


@dataclass(frozen=True)
class RampGoal:
    def clip(self, length, size):
        return torch.linspace(0, 200, length).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, size, size, 3)

    def frame(self, size):
        return self.clip(2, size)[-1]


@pytest.mark.parametrize("train", [True, False])
def test_a_real_reward_learns_and_freezes_on_the_way(train):
    config = RewardConfig(
        window=4, clip_frames=4, interval=4, fb_steps=60, credit="closing", fb=FBConfig(z_dim=4, hidden=8)
    )
    reward = GenReward(
        RampGoal(), config=config, video_encoder=TinyVideo(), image_encoder=TinyImage(), action_size=2, device="cpu"
    )
    updates = []
    update = reward.update
    reward.update = lambda batch: updates.append(batch.feature.shape) or update(batch)
    mode = AutoresetMode.NEXT_STEP
    envs = GenRewardVectorEnv(
        toys(mode), reward, env_reward="none", train_reward=train, update_every=4, batch_size=16, memory=200
    )
    record = play(envs, 45, mode)
    parts = [info["genreward/fb"][info["_genreward"]] for *_, info in record if "genreward" in info]
    for *_, paid, info in record:
        assert np.isfinite(paid).all()
        if "genreward" in info:
            both = info["genreward/fb"] + info["genreward/video"]
            np.testing.assert_allclose(info["genreward"], both, rtol=1e-5)
            np.testing.assert_allclose(paid, np.where(info["_genreward"], both[:, -1], 0), rtol=1e-5)
    assert not parts[0].any()  # r_FB is 0 until FB is frozen
    assert reward.frozen == train
    if train:
        assert 5 <= len(updates) <= 15
        assert set(updates) == {(16, 2, 3)}
        assert parts[-1].any()
        assert "fb/raw_mean" in envs.session.metrics
        assert envs.session.steps >= 60
    else:
        assert not updates
        assert not any(part.any() for part in parts)
