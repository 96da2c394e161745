"""UniPi as a policy: what shall be seen is a video, what is done follows from it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from genreward_fast.training.unipi.inverse_dynamics import InverseDynamics
from genreward_fast.training.unipi.plan import actions_of_video
from genreward_fast.training.unipi.videos import VideoSource
from genreward_fast.types import EnvStep


class Planner:
    """An `Actor` that makes a video of what shall come and takes the actions that lead through it.

    A plan begins with an episode, and with `replan` every so many steps from then on, from what is seen there. In
    between nothing is looked at (UniPi's open loop). Where a plan ends before the next one begins, the hand stays where
    it is and the gripper keeps its last effort.

    Attributes:
        sizes: see `Actor`.
        first_video: the first plan's, (T, H, W, 3) uint8; None before.
    """

    def __init__(
        self, dynamics: InverseDynamics, videos: VideoSource, steps: int, replan: int | None = None, seed: int = 0
    ) -> None:
        """
        Args:
            steps: environment steps that a video spans.
            replan: steps from one plan's beginning to the next one's; None for one plan an episode.
            seed: of the videos.
        """
        self.dynamics, self.videos, self.steps, self.replan = dynamics, videos, steps, replan
        self.sizes: tuple[int, ...] = (videos.frame_size,) if videos.frame_size else ()
        self.first_video: Tensor | None = None
        self._seeds = np.random.SeedSequence(seed)
        self._actions: dict[int, Tensor] = {}
        self._begun: dict[int, int] = {}
        self._last: tuple[Tensor, Tensor] | None = None

    def sizes_at(self, row: int) -> tuple[int, ...]:
        return self.sizes if self._begins(row) else ()

    def act(self, step: EnvStep) -> Tensor:
        """(N, A) float32 on the CPU; see `Actor`."""
        chosen = []
        for env, row in enumerate(step.row.tolist()):
            if self._begins(row) and not step.is_last[env]:
                self._actions[env], self._begun[env] = self._plan(step, env), row
            chosen.append(self._action(env, row))
        return torch.stack(chosen)

    def _begins(self, row: int) -> bool:
        return row == 0 or (self.replan is not None and row % self.replan == 0)

    def _plan(self, step: EnvStep, env: int) -> Tensor:
        frame = step.frames[self.videos.frame_size][env] if self.videos.frame_size else None
        (seed,) = self._seeds.spawn(1)[0].generate_state(1)
        video = self.videos(frame, int(seed))
        if self.first_video is None:
            self.first_video = video
        if self._last is None or self._last[0] is not video:  # a given video is the same every time
            self._last = video, actions_of_video(self.dynamics, video, self.steps)
        return self._last[1]

    def _action(self, env: int, row: int) -> Tensor:
        plan, age = self._actions[env], row - self._begun[env]
        if age < len(plan):
            return plan[age]
        still = torch.zeros_like(plan[-1])
        still[-1] = plan[-1, -1]
        return still
