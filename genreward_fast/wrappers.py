"""Our reward in somebody else's trainer: wrappers around any Gymnasium environment that renders RGB frames.

    envs = gymnasium.make_vec("...", num_envs=8, render_mode="rgb_array")
    envs = GenRewardVectorEnv(envs, GenReward(goal, preset="paper", device="cuda"))

When a window closes, `info["genreward"]` holds the reward of each of its rows, (N, T), valid where `info["_genreward"]`
is true; row j belongs to the transition j - T + 1 steps before the one that `step` returns. What `step` itself pays:

- credit "closing", the default: the sum of the window's rows, at the step that closes it. Any trainer can learn from
  that; a single environment for a trainer that vectorises by itself is `GenRewardEnv`.
- credit "spread": nothing of it. A trainer with a replay adds the rows to the rewards of the last T transitions that it
  stored for that environment (rows that an earlier window has paid are 0), before it samples them.

An episode shorter than a window has no window, and gets no generated reward.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from genreward_fast.errors import UserError
from genreward_fast.rewards.base import RewardModel
from genreward_fast.rewards.session import Frames, RewardSession, check_episode_length


class GenRewardVectorEnv(VectorWrapper):
    """Adds a generated reward to a vector environment; see the top of this file for which step is paid what.

    Works with every autoreset mode. In DISABLED mode, environments that ended are reset by the caller, as Gymnasium
    says, with `options={"reset_mask": mask}`. `session` has the steps so far and the metrics of the reward's learning.
    """

    def __init__(self, env: VectorEnv, reward: RewardModel, *, frames: Frames | None = None, **options: Any):
        """
        Args:
            env: renders rgb_array frames, unless `frames` is given.
            reward: what to add. Its pixels are cut to the middle square and resized on its device.
            frames: called instead of `env.render()`; (N, H, W, 3) uint8, or one (H, W, 3) per environment. Use it where
                `render()` is not as an encoder expects it (several of Meta-World's cameras hang upside down).
            options: see `RewardSession`.

        Raises:
            UserError: the environment does not render RGB frames, its actions are not a bounded Box, or its episodes
                are too short for a window.
        """
        super().__init__(env)
        check_episode_length(env.spec, reward)
        if frames is None:
            _check_render_mode(env.render_mode, reward)
        self.session = RewardSession(
            reward,
            env.num_envs,
            env.single_action_space,
            frames or env.render,
            **options,
        )
        mode = env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        self._autoreset = AutoresetMode(mode)
        self._ended = np.zeros(env.num_envs, bool)

    def reset(self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None) -> Any:
        """Resets all environments, or those of `options["reset_mask"]`."""
        chosen = np.ones(self.num_envs, bool)
        if options is not None and "reset_mask" in options:
            chosen = np.array(options["reset_mask"], bool)
        result = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]  # its hint omits lists of seeds
        self._ended[chosen] = False
        started = np.flatnonzero(chosen)
        self.session.begin(started)
        self.session.observe(started)
        return result

    def step(self, actions: Any) -> Any:
        """
        Raises:
            UserError: an action is NaN or infinite, or of another size.
        """
        self.session.check(actions)
        observation, reward, terminated, truncated, info = self.env.step(actions)
        # With NEXT_STEP, the step after an episode's last one resets the environment, and its action is ignored.
        restarted = self._ended & (self._autoreset is AutoresetMode.NEXT_STEP)
        moved = ~self._ended
        paid, more = self.session.complete(np.flatnonzero(moved), actions, reward)
        ended = (np.asarray(terminated) | np.asarray(truncated)) & moved
        if self._autoreset is AutoresetMode.SAME_STEP:
            restarted, ended = ended, np.zeros_like(ended)
        self._ended = (self._ended & ~restarted) | ended
        self.session.begin(np.flatnonzero(restarted))
        self.session.observe(np.flatnonzero(~self._ended))
        return observation, paid, terminated, truncated, {**info, **more}


class GenRewardEnv(gymnasium.Wrapper):
    """The same for a single environment: `info["genreward"]` is (T,) and present only when a window closes."""

    def __init__(self, env: gymnasium.Env, reward: RewardModel, *, frames: Frames | None = None, **options: Any):
        """Options and errors as for `GenRewardVectorEnv`; `frames` returns one (H, W, 3) uint8 frame."""
        super().__init__(env)
        check_episode_length(env.spec, reward)
        if frames is None:
            _check_render_mode(env.render_mode, reward)
        frame = frames or env.render
        self.session = RewardSession(
            reward,
            1,
            env.action_space,
            lambda: [frame()],
            **options,
        )
        self._only = np.zeros(1, np.int64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        result = self.env.reset(seed=seed, options=options)
        self.session.begin(self._only)
        self.session.observe(self._only)
        return result

    def step(self, action: Any) -> Any:
        """
        Raises:
            UserError: the action is NaN or infinite, or of another size.
        """
        self.session.check(action)
        observation, reward, terminated, truncated, info = self.env.step(action)
        paid, more = self.session.complete(self._only, action, np.asarray([reward]))
        if not (terminated or truncated):
            self.session.observe(self._only)
        single = {name: value[0] for name, value in more.items() if not name.startswith("_")}
        return observation, float(paid[0]), terminated, truncated, {**info, **single}


def _check_render_mode(mode: str | None, reward: RewardModel) -> None:
    if reward.frames.window and mode != "rgb_array":
        raise UserError(f"the environment's render_mode is {mode!r}; make it with render_mode='rgb_array'")
