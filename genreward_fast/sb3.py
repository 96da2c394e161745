"""Our reward in Stable-Baselines3: a wrapper around its vector environments, and a replay buffer for rows paid later.

    venv = make_vec_env(make_my_env, n_envs=8)  # renders rgb_array frames
    venv = GenRewardVecEnv(venv, GenReward(goal, preset="paper", device="cuda"))
    PPO("MlpPolicy", venv).learn(1_000_000)

All environments are scored together. See the top of `genreward_fast/wrappers.py` for what `credit` means, and
docs/your_own_trainer.md for both in use.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from genreward_fast.errors import UserError
from genreward_fast.rewards.base import RewardModel
from genreward_fast.rewards.session import Frames, RewardSession, check_episode_length

try:
    from stable_baselines3.common.buffers import ReplayBuffer
    from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
except ModuleNotFoundError:
    raise UserError("Stable-Baselines3 is not installed; pip install 'genreward-fast[sb3]'") from None


class GenRewardVecEnv(VecEnvWrapper):
    """Adds a generated reward to a Stable-Baselines3 vector environment.

    When a window of environment i closes, `infos[i]["genreward"]` holds the reward of each of its rows, (T,), and
    `infos[i]["genreward/NAME"]` the parts of it; row j belongs to the transition T - 1 - j steps before this one.
    `session` has the steps so far and the metrics of the reward's learning.
    """

    def __init__(self, venv: VecEnv, reward: RewardModel, *, frames: Frames | None = None, **options: Any):
        """
        Args:
            venv: renders rgb_array frames, unless `frames` is given.
            reward: what to add. Its pixels are cut to the middle square and resized on its device.
            frames: called instead of `venv.get_images()`; (N, H, W, 3) uint8, or one (H, W, 3) per environment.
            options: see `RewardSession`.

        Raises:
            UserError: the environment does not render RGB frames, its actions are not a bounded Box, or its episodes
                are too short for a window.
        """
        super().__init__(venv)
        if frames is None and reward.frames.window and venv.render_mode != "rgb_array":
            raise UserError(
                f"the environment's render_mode is {venv.render_mode!r}; make it with render_mode='rgb_array'"
            )
        check_episode_length(venv.get_attr("spec", 0)[0], reward)
        self.session = RewardSession(reward, venv.num_envs, venv.action_space, frames or venv.get_images, **options)
        self._all = np.arange(venv.num_envs)
        self._actions: np.ndarray | None = None

    def reset(self) -> Any:
        observation = self.venv.reset()
        self.session.begin(self._all)
        self.session.observe(self._all)
        return observation

    def step_async(self, actions: np.ndarray) -> None:
        """
        Raises:
            UserError: an action is NaN or infinite, or of another size.
        """
        self.session.check(actions)
        self._actions = actions
        self.venv.step_async(actions)

    def step_wait(self) -> Any:
        observation, reward, done, infos = self.venv.step_wait()
        paid, more = self.session.complete(self._all, self._actions, reward)
        # An environment that is done has been reset: what it shows now is the first row of its next episode.
        self.session.begin(np.flatnonzero(done))
        self.session.observe(self._all)
        for name in [name for name in more if not name.startswith("_")]:
            for env in np.flatnonzero(more[f"_{name}"]):
                infos[env][name] = more[name][env]
        return observation, paid.astype(np.float32), done, infos


@dataclass
class _Waiting:
    """One step of all environments: the arguments of `ReplayBuffer.add`, and whose reward is not complete yet."""

    obs: np.ndarray
    next_obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    done: np.ndarray
    infos: list[dict[str, Any]]
    open: np.ndarray


class GenRewardReplayBuffer(ReplayBuffer):
    """A replay buffer for `credit="spread"`: steps enter it when their window has closed, with its reward added.

    So nothing is ever sampled with a part of its reward missing. Steps behind an episode's last window enter when the
    episode ends, with the environment's reward alone. `learning_starts` must leave time for the first window: at
    least window · number of environments.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._waiting: deque[_Waiting] = deque()

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        self._waiting.append(
            _Waiting(  # the caller may reuse its arrays
                obs=np.array(obs),
                next_obs=np.array(next_obs),
                action=np.array(action),
                reward=np.array(reward),
                done=np.array(done),
                infos=infos,
                open=np.ones(self.n_envs, bool),
            )
        )
        for env, info in enumerate(infos):
            rows = info.get("genreward", ())
            for step, value in zip(reversed(self._waiting), reversed(rows)):
                step.reward[env] += value
            if len(rows) or done[env]:
                for step in self._waiting:
                    step.open[env] = False
        while self._waiting and not self._waiting[0].open.any():
            step = self._waiting.popleft()
            super().add(step.obs, step.next_obs, step.action, step.reward, step.done, step.infos)
