"""One tick of all environments: encode, act, store, score the windows that closed, step."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genreward_fast.agent.agent import Agent
from genreward_fast.agent.beside import beside, confine, join
from genreward_fast.agent.config import IMAGE_SIZE
from genreward_fast.envs.vector import VectorEnv
from genreward_fast.rewards.base import EncodesWindows, RewardModel, inline, total
from genreward_fast.rewards.windows import ClosedWindows, WindowCollector
from genreward_fast.training.device import one_thread
from genreward_fast.training.metrics import Meters
from genreward_fast.training.pending import PendingRewards
from genreward_fast.training.replay import Replay
from genreward_fast.types import EnvStep

REWARD = "reward"
"""The stream on which windows are encoded and their scores added up."""
FRAME_LEVEL = "frame level"
"""The stream on which frames become features, and the frame level learns from them."""


class NotFinite(Exception):
    """The agent's action is NaN or infinite."""


class Rollout:
    """The environments' side of training.

    A tick is `begin` (choose the actions, store the row that arrived), `send` (the actions, to the environments) and
    `finish` (wait for the next row); what the caller does between the last two overlaps with the simulators. On CUDA
    `send` is the one that waits for the device.

    With `overlap`, on CUDA, the encoding of windows goes on beside all that, until their rows are due, and the frame
    level's work until the tick ends.

    Attributes:
        note: why windows are not encoded on the part of the GPU that was asked for; "" if they are.
        env_steps: actions taken so far, summed over the environments, counting action repeats.
        episodes: (return, success, length) of the last 100 complete episodes.
    """

    def __init__(
        self,
        envs: VectorEnv,
        agent: Agent,
        reward: RewardModel,
        replay: Replay,
        *,
        env_reward: str,
        action_repeat: int,
        has_success: bool,
        release_delay: int,
        seed: int,
        overlap: bool = False,
        multiprocessors: int | None = 0,
    ):
        self.envs, self.agent, self.reward, self.replay = envs, agent, reward, replay
        self.env_reward, self.action_repeat = env_reward, action_repeat
        self.has_success = has_success
        self.env_steps = 0
        self.episode_count = 0
        self.discarded_episodes = 0
        self.episodes: deque[tuple[float, bool, int]] = deque(maxlen=100)
        self.meters = Meters()
        self.generator = torch.Generator().manual_seed(seed)  # of the random actions during prefill
        self._windows = WindowCollector(reward.frames, envs.num_envs, agent.action_size, agent.device)
        self._episode_start = np.zeros(envs.num_envs, np.int64)  # replay row of the open episode's first row
        self._action: Tensor | None = None  # what was sent to the environments last
        self._pending = PendingRewards(release_delay)
        self._scored: deque[tuple[int, dict[str, Tensor]]] = deque()  # means of scores, and the step they are due at
        self._device = torch.zeros((), device=agent.device).device  # with its number, by which streams are found
        self._anchor = torch.zeros((), device=self._device)
        self._on_host: Tensor | None = None  # the actions that `send` will send
        self._copied = torch.cuda.Event() if self._device.type == "cuda" else None
        self._overlap = overlap
        self._beside = functools.partial(beside, REWARD) if overlap else inline
        self.note = confine(REWARD, self._device, multiprocessors) if overlap else ""
        if isinstance(reward, EncodesWindows):
            reward.encoding = self._beside
        self._returns = np.zeros(envs.num_envs)
        self._successes = np.zeros(envs.num_envs, bool)
        self._lengths = np.zeros(envs.num_envs, int)
        self._carry = agent.initial(envs.num_envs)
        self._step: EnvStep = envs.reset()

    def begin(self, *, random: bool) -> list[tuple[float, bool, int]]:
        """Chooses the next actions and stores the rows that have arrived; the episodes that ended with these rows.

        Args:
            random: uniformly random actions instead of the agent's.
        """
        step, device = self._step, self.agent.device
        image = step.frames[IMAGE_SIZE].to(device, non_blocking=True)
        is_first = step.is_first.to(device, non_blocking=True)
        with one_thread(device):
            action, self._carry, latents = self.agent.act(image, is_first, self._carry)
        if random:
            action = (torch.rand(action.shape, generator=self.generator) * 2 - 1).to(device)
            self._carry = replace(self._carry, action=action)
        self._copy_to_host(action)
        self._discard(step)
        closed = self._close_windows(step)
        feature = self._observe(step)
        self._action = action
        rows = self.replay.append(
            image=image,
            action=action,
            reward=self._env_reward(step),
            is_first=step.is_first,
            is_last=step.is_last,
            is_terminal=step.is_terminal,
            latents=latents,
        )
        if feature is not None:
            with self.frame_level():
                self.replay.put_features(rows, feature)
        first = step.is_first.numpy()
        self._episode_start = np.where(first, rows, self._episode_start)
        self.env_steps += int((~first).sum()) * self.action_repeat
        self._schedule(step, rows, closed)
        return self._count_episodes(step)

    def send(self) -> None:
        """Sends the actions that `begin` chose. The frames that it stored stay as they are until the next call.

        Raises:
            NotFinite: the agent chose an action that is NaN or infinite.
        """
        if self._on_host is None:
            raise RuntimeError("begin a tick before sending its actions")
        if self._copied is not None:
            self._copied.synchronize()
        if not self._on_host.isfinite().all():
            raise NotFinite("the policy's action is not finite")
        self.envs.send(self._on_host)

    def finish(self) -> None:
        """Waits for the environments, and releases the rows that are due."""
        self._step = self.envs.receive()
        self.wait_for_frame_level()
        due = self._pending.pop_due(self.env_steps)
        scored = [means for step, means in self._scored if step <= self.env_steps]
        if scored or any(values is not None for *_, values in due):
            self._wait_for_scores()
        for means in scored:
            self.meters.add(means)
            self._scored.popleft()
        for envs, starts, upto, values in due:
            if values is not None:
                self.replay.relabel(envs, starts, values)
            self.replay.release(envs, upto)

    @contextmanager
    def frame_level(self) -> Iterator[None]:
        """Around what computes features, reads them, or learns from them; with `overlap` on a stream of its own."""
        if not self._overlap:
            yield
            return
        with beside(FRAME_LEVEL, self._anchor):
            yield

    def wait_for_frame_level(self) -> None:
        """Lets what follows on the device wait for the frame level; the host goes on."""
        if self._overlap:
            join(FRAME_LEVEL, self._device)

    def pending_state(self) -> list[dict[str, Any]]:
        """The rewards that wait for their step, for a checkpoint."""
        self._wait_for_scores()
        return self._pending.state()

    def resume(self, env_steps: int, pending: list[dict[str, Any]]) -> None:
        """Goes on after a checkpoint, with the replay as it was.

        The simulators cannot go on with the episodes that were open: their rows behind the last complete window are
        kept without a generated reward, like the end of any episode.
        """
        self.env_steps = env_steps
        self._pending.load_state(pending)
        written = self.replay.index.written.copy()
        self._pending.add(env_steps, np.arange(len(written)), written, written, None)

    def _copy_to_host(self, action: Tensor) -> None:
        """Begins to; `send` waits for it."""
        if self._copied is None:
            self._on_host = action
            return
        if self._on_host is None:
            self._on_host = torch.empty(action.shape, dtype=action.dtype, pin_memory=True)
        self._on_host.copy_(action, non_blocking=True)
        self._copied.record()

    def _env_reward(self, step: EnvStep) -> Tensor:
        if self.env_reward == "dense":
            return step.reward
        if self.env_reward == "sparse":
            return step.success.float()
        return torch.zeros_like(step.reward)

    def _wait_for_scores(self) -> None:
        """Lets what follows on the device wait for the windows that have been handed over; the host goes on."""
        join(REWARD, self._device)

    def _discard(self, step: EnvStep) -> None:
        for env in np.flatnonzero(step.discarded.numpy()):
            self._wait_for_scores()
            first = int(self._episode_start[env])
            self._pending.drop(int(env), first)
            self.replay.rollback(int(env), first)
            self.discarded_episodes += 1

    def _close_windows(self, step: EnvStep) -> list[ClosedWindows]:
        """Completes the rows that led here, and begins episodes; the windows that are complete now."""
        first = step.is_first.numpy()
        moved, begun = np.flatnonzero(~first), np.flatnonzero(first)
        closed = []
        if len(moved):
            assert self._action is not None  # every environment's first row is a reset
            action, env_reward = self._action, self._env_reward(step)
            if len(begun):
                index = torch.from_numpy(moved)
                action, env_reward = action[index.to(action.device, non_blocking=True)], env_reward[index]
            closed = self._windows.complete(moved, action, env_reward)
        self._windows.begin(begun)
        return closed

    def _observe(self, step: EnvStep) -> Tensor | None:
        """Shows the frames that arrived to the reward; (N, D) features, if it wants any."""
        spec, device = self.reward.frames, self.agent.device
        everyone = np.arange(len(step.row))
        feature = None
        if spec.feature_size:
            with one_thread(device), self.frame_level():
                feature = self.reward.features(step.frames[spec.feature_size].to(device, non_blocking=True))
                self._windows.observe_features(everyone, feature)
        going_on = np.flatnonzero(~step.is_last.numpy())  # nothing is done on seeing an episode's last frame
        _, for_clips = self._windows.wanted(going_on)
        if len(for_clips):
            self._windows.observe_clip_frames(for_clips, _copied(step.frames[spec.clip_size], for_clips, device))
        return feature

    def _schedule(self, step: EnvStep, rows: np.ndarray, closed: list[ClosedWindows]) -> None:
        """Scores the windows that closed, and schedules the rows whose reward is complete with them."""
        if not self.reward.frames.window:
            self.replay.release(np.arange(len(rows)), rows + 1)
            return
        for group in closed:
            parts = self.reward.parts(group.window)
            with self._beside(*parts.values()):
                values = total(parts)
                means = {f"reward/{name}": value.mean() for name, value in parts.items()}
            self._scored.append((self.env_steps + self._pending.delay, means))
            last = rows[group.envs]
            first = last - self.reward.frames.window + 1
            self._pending.add(self.env_steps, group.envs, first, last + 1, values)
        ended = np.flatnonzero(step.is_last.numpy())
        if len(ended):  # rows behind the last complete window get no generated reward
            self._pending.add(self.env_steps, ended, rows[ended], rows[ended] + 1, None)

    def _count_episodes(self, step: EnvStep) -> list[tuple[float, bool, int]]:
        first = step.is_first.numpy()
        self._returns = np.where(first, 0.0, self._returns + step.reward.numpy())
        self._successes = np.where(first, False, self._successes | step.success.numpy())
        self._lengths = np.where(first, 0, self._lengths + self.action_repeat)
        self.meters.add({"env/dense_reward": step.reward.mean()})
        if self.has_success:
            self.meters.add({"env/success": step.success.float().mean()})
        ended = [
            (float(self._returns[env]), bool(self._successes[env]), int(self._lengths[env]))
            for env in np.flatnonzero(step.is_last.numpy())
        ]
        self.episodes.extend(ended)
        self.episode_count += len(ended)
        return ended


def _copied(frames: Tensor, envs: np.ndarray, device: torch.device) -> Tensor:
    """The frames of `envs` (n,) in a tensor of their own on the device: (N, ...) to (n, ...).

    Out of page-locked memory they are copied without waiting; `begin` waits for the device before the next frames are
    asked for.
    """
    if len(envs) == len(frames):
        return frames.to(device, non_blocking=True, copy=True)
    copied = torch.empty((len(envs), *frames.shape[1:]), dtype=frames.dtype, device=device)
    for target, env in zip(copied, envs):
        target.copy_(frames[env], non_blocking=True)
    return copied
