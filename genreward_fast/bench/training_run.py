"""A training run held still at its interesting moments, for the benchmark of training as a whole."""

from __future__ import annotations

import functools
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

from genreward_fast.encoders.presets import Encoders
from genreward_fast.goals.goal import Goal
from genreward_fast.rewards.base import RewardModel
from genreward_fast.rewards.genreward import GenReward
from genreward_fast.rewards.registry import make_reward
from genreward_fast.training.logger import Progress
from genreward_fast.training.settings import RunConfig
from genreward_fast.training.trainer import Trainer

PARTS = ("env wait", "act", "feature encode", "clip encode", "FB score", "FB update", "agent updates")


class Run:
    """A training run whose parts can be timed.

    Attributes:
        trainer, reward: what it is made of.
        episode: ticks of an episode, the first of which resets.
    """

    def __init__(self, trainer: Trainer, reward: RewardModel):
        self.trainer, self.reward = trainer, reward
        self.episode = trainer.config.env.steps + 1
        self._ticks = 0

    def warm_up(self) -> None:
        """Until graphs have been recorded and, if it is to be, FB is frozen."""
        while self.trainer.counters.updates < 4:
            self.tick()

    def tick(self) -> None:
        self.trainer.tick()
        self._ticks += 1

    def wait(self) -> None:
        if self.trainer.device.type == "cuda":
            torch.cuda.synchronize(self.trainer.device)

    def episodes(self, steps: int | None) -> int:
        """How many of every environment make up `steps`."""
        each = self.trainer.config.train.envs * (self.episode - 1)
        return 1 if steps is None else -(-steps // each)

    def seconds(self, episodes: int) -> tuple[float, int]:
        """Wall time of `episodes` of every environment, and the environment steps in it; windows close in all.

        It begins and ends just before windows close, so that each window that closed has been encoded by then.
        """
        self.before_a_window_closes()
        before = self.trainer.rollout.env_steps
        progress = Progress(episodes * self.trainer.config.train.envs * (self.episode - 1))
        self.wait()
        begin = time.perf_counter()
        for _ in range(episodes * self.episode):
            self.tick()
            progress.show(self.trainer.rollout.env_steps - before)
        self.wait()
        seconds = time.perf_counter() - begin
        progress.end()
        return seconds, self.trainer.rollout.env_steps - before

    def before_a_window_closes(self) -> None:
        """Ticks until the next one is the last before a window closes."""
        reward = self.trainer.config.reward
        while True:
            behind = self._ticks % self.episode - (reward.window - 1)
            if behind >= 0 and behind % reward.interval == 0:
                return
            self.tick()

    @contextmanager
    def around_parts(self, around: Callable[[str], AbstractContextManager[None]]) -> Iterator[None]:
        """Every part runs inside `around(name of the part)` meanwhile."""
        trainer, reward = self.trainer, self.reward
        places: list[tuple[Any, str, str]] = [
            (trainer.envs, "receive", "env wait"),
            (trainer.agent, "act", "act"),
            (trainer.agent, "update_from", "agent updates"),
        ]
        if isinstance(reward, GenReward):
            places += [(reward, "features", "feature encode"), (reward, "update", "FB update")]
            places += [(reward.video_level, "score", "clip encode"), (reward.frame_level, "score", "FB score")]
        for owner, name, part in places:
            setattr(owner, name, _inside(around, part, getattr(owner, name)))
        try:
            yield
        finally:
            for owner, name, _ in places:
                delattr(owner, name)  # what its class has shows again


def _inside(
    around: Callable[[str], AbstractContextManager[None]], part: str, function: Callable[..., Any]
) -> Callable[..., Any]:
    @functools.wraps(function)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with around(part):
            return function(*args, **kwargs)

    return inside


@contextmanager
def started(config: RunConfig, encoders: Encoders) -> Iterator[Run]:
    """A run in a temporary folder, warmed up, whose goal is noise: rewards' values play no part in speed."""
    gc.collect()  # an agent holds itself; the memory of the last one is wanted now
    if encoders.device.type == "cuda":
        torch.cuda.empty_cache()
    goal = None
    if config.reward.name != "none":
        frames, size = config.reward.clip_frames, config.encoders.clip_size
        goal = Goal("noise", torch.randint(0, 256, (frames, size, size, 3), dtype=torch.uint8), frames - 1)
    reward = make_reward(config.reward, goal, encoders, config.env.action_size, encoders.device, config.train.seed)
    with tempfile.TemporaryDirectory() as folder, Trainer(config, Path(folder), reward) as trainer:
        run = Run(trainer, reward)
        run.warm_up()
        yield run
