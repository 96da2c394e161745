"""Episodes of the scripted experts that ship with Meta-World: as they are, with noise, or random from some step on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from genreward_fast.envs.env_config import EnvConfig
from genreward_fast.envs.metaworld_env import MetaWorldEnv
from genreward_fast.errors import UserError

# isort: split
from metaworld.policies import ENV_POLICY_MAP


@dataclass(frozen=True)
class ExpertEpisode:
    """T steps of an expert. Action t is taken at frame t and leads to frame t + 1.

    Attributes:
        frames: size -> (T + 1, size, size, 3) uint8, upright RGB; every n-th of them if that was asked for.
        states: (T + 1, 39) float64.
        actions: (T, 4) float32 in [-1, 1].
        rewards: (T,) float32, the dense reward of arriving at frame t + 1.
        success: (T,) bool, whether the task counts as solved at frame t + 1.
        first_success: the first t with `success[t]`, so that frame `first_success + 1` shows it; None if there is none.
        seed: the episode's seed.
    """

    frames: dict[int, np.ndarray] = field(repr=False)
    states: np.ndarray = field(repr=False)
    actions: np.ndarray = field(repr=False)
    rewards: np.ndarray = field(repr=False)
    success: np.ndarray = field(repr=False)
    first_success: int | None
    seed: int


def expert_episode(
    config: EnvConfig,
    seed: int,
    sizes: Sequence[int],
    *,
    stop_at_success: bool = True,
    noise: float = 0.0,
    random_from: int | None = None,
    max_steps: int | None = None,
    render_every: int = 1,
    env: MetaWorldEnv | None = None,
) -> ExpertEpisode:
    """One episode of the task's expert.

    Args:
        config: the environment.
        seed: of the start, the goal and the noise.
        sizes: sides of the frames to render at every step, in pixels; () for none.
        stop_at_success: end with the first frame that counts as solved. Several experts lose it again later.
        noise: standard deviation of the Gaussian noise added to each action before it is clipped.
        random_from: the step from which on actions are uniformly random instead; 0 for all of them, None for none.
        max_steps: end after that many steps at the latest; None for the episode's length.
        render_every: render the frames 0, n, 2n, ... alone.
        env: an environment of this config to use; without it one is made and closed.

    Raises:
        UserError: `noise`, `random_from`, `max_steps` or `render_every` is out of range.
        ValueError: `env` has another config.
    """
    if not noise >= 0:
        raise UserError(f"noise {noise}: must not be negative")
    if random_from is not None and random_from < 0:
        raise UserError(f"random_from {random_from}: must not be negative")
    if max_steps is not None and max_steps < 1:
        raise UserError(f"max_steps {max_steps}: must be at least 1")
    if render_every < 1:
        raise UserError(f"render_every {render_every}: must be at least 1")
    if env is not None and env.config != config:
        raise ValueError(f"env was made from {env.config}, not {config}")
    steps = config.steps if max_steps is None else min(max_steps, config.steps)
    scripted = steps if random_from is None else random_from
    used = MetaWorldEnv(config) if env is None else env
    try:
        return _play(used, seed, tuple(sizes), stop_at_success, noise, scripted, steps, render_every)
    finally:
        if env is None:
            used.close()


def expert_success(config: EnvConfig, first_seed: int, sizes: Sequence[int], attempts: int = 10) -> ExpertEpisode:
    """The first of the episodes with seeds `first_seed`, `first_seed` + 1, ... in which the expert succeeds.

    Raises:
        UserError: it fails in all `attempts`.
    """
    env = MetaWorldEnv(config)
    try:
        for seed in range(first_seed, first_seed + attempts):
            # Frames are most of the cost, so a failure is found out without them; the episode is the same with them.
            if expert_episode(config, seed, (), env=env).first_success is not None:
                return expert_episode(config, seed, sizes, env=env)
    finally:
        env.close()
    raise UserError(
        f"the expert of {config.task} did not succeed from {attempts} starts within {config.steps} steps; "
        "raise episode_length or attempts, or choose another first seed"
    )


def _play(
    env: MetaWorldEnv,
    seed: int,
    sizes: tuple[int, ...],
    stop_at_success: bool,
    noise: float,
    scripted: int,
    steps: int,
    render_every: int,
) -> ExpertEpisode:
    expert: Any = ENV_POLICY_MAP[f"{env.config.task}-v3"]  # declared as the abstract class of them all
    policy = expert()
    random = np.random.default_rng(seed)
    state, _ = env.reset(seed=seed)
    states, actions, rewards, success = [state], [], [], []
    frames: dict[int, list[np.ndarray]] = {size: [] for size in sizes}
    _append(frames, env)
    for step in range(steps):
        if step < scripted:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the experts ask for more than the environment gives, and say so
                wanted = policy.get_action(state)
            action = np.clip(wanted + noise * random.standard_normal(4), -1.0, 1.0).astype(np.float32)
        else:
            action = random.uniform(-1.0, 1.0, 4).astype(np.float32)
        state, reward, _, truncated, info = env.step(action)
        states.append(state)
        actions.append(action)
        rewards.append(reward)
        success.append(info["success"])
        if (step + 1) % render_every == 0:
            _append(frames, env)
        if truncated or (stop_at_success and info["success"]):
            break
    return ExpertEpisode(
        frames={size: np.stack(pictures) for size, pictures in frames.items()},
        states=np.stack(states),
        actions=np.stack(actions),
        rewards=np.array(rewards, np.float32),
        success=np.array(success, bool),
        first_success=success.index(True) if True in success else None,
        seed=seed,
    )


def _append(frames: dict[int, list[np.ndarray]], env: MetaWorldEnv) -> None:
    for size, picture in env.render_sizes(frames).items():
        frames[size].append(picture)
