"""Running a policy in environments whose seeds training never sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from genreward_fast.agent.agent import Agent, Carry
from genreward_fast.agent.config import IMAGE_SIZE
from genreward_fast.agent.sampling import RandomSampler
from genreward_fast.envs.suites import AnyEnvConfig
from genreward_fast.envs.vector import VectorEnv
from genreward_fast.goals.video_io import write_video
from genreward_fast.training.device import one_thread
from genreward_fast.training.statistics import wilson_interval
from genreward_fast.types import EnvStep

VIDEO_SIZE = 256
VIDEO_FPS = 30


@dataclass(frozen=True)
class Evaluation:
    """What `episodes` complete episodes gave.

    Attributes:
        episodes: how many.
        return_mean, return_std: of the environment's dense return (standard deviation over episodes).
        success: fraction of episodes with a success at any step; None where the task does not define success.
        success_low, success_high: 95% Wilson interval of it, or None.
        length_mean: environment steps in an episode.
        returns, successes: one entry an episode; `successes` is empty where success is not defined.
    """

    episodes: int
    return_mean: float
    return_std: float
    success: float | None
    success_low: float | None
    success_high: float | None
    length_mean: float
    returns: list[float]
    successes: list[bool]

    def scalars(self) -> dict[str, float]:
        """The single numbers that there are, for logs."""
        return {name: float(value) for name, value in asdict(self).items() if isinstance(value, int | float)}


def success_text(scalars: Mapping[str, float]) -> str:
    """The success rate in `Evaluation.scalars`, as it is printed."""
    if "success" not in scalars:
        return "not defined for this task: its return is what counts"
    low, high = scalars["success_low"], scalars["success_high"]
    return f"{scalars['success']:.0%} (95% interval {low:.0%} to {high:.0%})"


class Actor(Protocol):
    """What chooses the actions of N environments that step together.

    Attributes:
        sizes: sides in pixels of all the frames that it may ask for.
    """

    sizes: tuple[int, ...]

    def sizes_at(self, row: int) -> tuple[int, ...]:
        """The sizes that it must see of that row of an episode."""
        ...

    def act(self, step: EnvStep) -> Tensor:
        """(N, A) float32 in [-1, 1] on the CPU. Not used is the row of an environment whose episode has just ended."""
        ...


class AgentActor:
    """An agent's actions, drawn from its policy by a generator of their own."""

    sizes: tuple[int, ...] = (IMAGE_SIZE,)

    def __init__(self, agent: Agent, seed: int):
        self.agent = agent
        self._sampler = RandomSampler(agent.device, seed)  # its own, so that evaluating changes nothing in training
        self._carry: Carry | None = None

    def sizes_at(self, row: int) -> tuple[int, ...]:
        return self.sizes

    def act(self, step: EnvStep) -> Tensor:
        carry = self.agent.initial(len(step.is_first)) if self._carry is None else self._carry
        image, is_first = step.frames[IMAGE_SIZE].to(self.agent.device), step.is_first.to(self.agent.device)
        with one_thread(self.agent.device):
            action, self._carry, _ = self.agent.act(image, is_first, carry, sampler=self._sampler)
        return action.cpu()


def evaluate(
    actor: Actor,
    config: AnyEnvConfig,
    *,
    episodes: int,
    envs: int,
    seed: int,
    video: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_episode: Callable[[], object] = lambda: None,
) -> Evaluation | None:
    """Runs whole episodes, a fixed number in each of `envs` workers.

    So does the evaluation of DreamerV3's published code. The same seed gives the same episodes. An episode whose worker
    died is run again.

    Args:
        video: where the first episode is written as an mp4, if anywhere.
        stop: asked on every step; once it says true the evaluation ends without a result.
        on_episode: called at the end of each episode that counts.
    """
    envs = min(envs, episodes)
    quota = [episodes // envs + (env < episodes % envs) for env in range(envs)]
    sizes = (*actor.sizes, VIDEO_SIZE) if video else actor.sizes
    finished: list[list[tuple[float, bool, int]]] = [[] for _ in range(envs)]
    returns, success, lengths = np.zeros(envs), np.zeros(envs, bool), np.zeros(envs, int)
    recorded: list[Tensor] = []

    def sizes_at(row: int) -> tuple[int, ...]:
        wanted = actor.sizes_at(row)  # once the video is recorded, pictures for it would be wasted
        return (*wanted, VIDEO_SIZE) if video and not finished[0] else wanted

    with VectorEnv(config, envs, seed=seed, split="eval", sizes=sizes, sizes_at=sizes_at) as workers:
        step = workers.reset()
        while True:
            first = step.is_first.numpy()
            returns = np.where(first, 0.0, returns + step.reward.numpy())
            success = np.where(first, False, success | step.success.numpy())
            lengths = np.where(first, 0, lengths + 1)
            if video and not finished[0]:
                if first[0]:
                    recorded.clear()
                recorded.append(step.frames[VIDEO_SIZE][0].clone())
            for env in np.flatnonzero(step.is_last.numpy()):
                finished[env].append((float(returns[env]), bool(success[env]), int(lengths[env])))
                if len(finished[env]) <= quota[env]:
                    on_episode()
            if all(len(done) >= wanted for done, wanted in zip(finished, quota)):
                break
            if stop():
                return None
            step = workers.step(actor.act(step))
    if video:
        write_video(video, torch.stack(recorded), VIDEO_FPS)
    rows = [row for done, wanted in zip(finished, quota) for row in done[:wanted]]
    totals = [row[0] for row in rows]
    successes = [row[1] for row in rows] if config.has_success else []
    low, high = wilson_interval(sum(successes), len(rows)) if successes else (None, None)
    return Evaluation(
        episodes=len(rows),
        return_mean=float(np.mean(totals)),
        return_std=float(np.std(totals)),
        success=float(np.mean(successes)) if successes else None,
        success_low=low,
        success_high=high,
        length_mean=float(np.mean([row[2] for row in rows])) * config.action_repeat,
        returns=totals,
        successes=successes,
    )
