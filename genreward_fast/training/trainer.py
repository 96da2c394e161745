"""The training loop: environments, updates, evaluation, checkpoints."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from genreward_fast.agent.agent import Agent
from genreward_fast.agent.config import IMAGE_SIZE
from genreward_fast.agent.memory import required_bytes
from genreward_fast.envs.vector import VectorEnv
from genreward_fast.errors import Interrupted, TrainingDiverged
from genreward_fast.rewards.base import RewardModel
from genreward_fast.training.checkpoint import load_checkpoint, save_checkpoint
from genreward_fast.training.curves import draw_curves
from genreward_fast.training.device import describe_device, keep_host_memory, resolve_device
from genreward_fast.training.evaluation import AgentActor, Evaluation, evaluate
from genreward_fast.training.logger import Logger, Progress
from genreward_fast.training.metrics import Meters, first_not_finite
from genreward_fast.training.replay import Replay
from genreward_fast.training.rollout import NotFinite, Rollout
from genreward_fast.training.run_folder import RunFolder
from genreward_fast.training.settings import RunConfig
from genreward_fast.training.summary import Summary

FREEZE_BATCHES = 8


@dataclass
class Counters:
    """What a resumed run goes on counting from."""

    updates: int = 0
    owed: float = 0.0  # updates that the train ratio has earned and that are not done yet
    seconds: float = 0.0  # of training, over all the processes that the run has had
    evaluated_at: int = 0


class Trainer:
    """One run, from its resolved configuration to its summary.

    Use as a context manager: leaving it ends the workers and closes the files.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        reward: RewardModel,
        *,
        notes: Sequence[str] = (),
        resume: bool = False,
    ):
        """Makes everything, and with `resume` fills it from the folder's checkpoint.

        Args:
            config: the settings; `reward` was made from them.
            folder: an existing folder, in which nobody else trains (`RunLock`).
            notes: what everybody who sees a number of this run must know.

        Raises:
            UserError: the device is missing, or a file of the run is missing or damaged.
        """
        self.config = config
        self.notes = list(notes)
        self.reward = reward
        self.folder = RunFolder(folder)
        self.device = resolve_device(config.train.device)
        if self.device.type == "cpu":
            keep_host_memory()
        self._stop_signal: int | None = None
        train, seed = config.train, config.train.seed
        state = load_checkpoint(folder) if resume else None

        self.agent = Agent(config.agent, action_size=config.env.action_size, device=self.device, seed=seed)
        self.replay = Replay(
            num_envs=train.envs,
            capacity=train.replay_capacity,
            sequence_length=config.agent.batch_length,
            action_size=config.env.action_size,
            feature_dim=self.reward.frames.feature_dim,
            deter_size=config.agent.sizes.deter,
            stoch_size=config.agent.sizes.stoch,
            withheld=self._withheld(),
            device=self.device,
            seed=seed,
            reserve=required_bytes(config.agent, config.env.action_size),
        )
        frames, rows = self.reward.frames, config.env.steps
        sizes = tuple(sorted({IMAGE_SIZE, frames.feature_size, frames.clip_size} - {0}))
        self.envs = VectorEnv(
            config.env,
            train.envs,
            seed=seed,
            split="train",
            sizes=sizes,
            pin_memory=self.device.type == "cuda",
            sizes_at=lambda row: tuple(
                sorted({IMAGE_SIZE, *(frames.sizes_at(row) if row < rows else (frames.feature_size,))} - {0})
            ),
        )
        self.counters = Counters()
        self.meters = Meters()
        try:
            if state is not None:
                self.envs.set_state(state["envs"])
            self.rollout = Rollout(
                self.envs,
                self.agent,
                self.reward,
                self.replay,
                env_reward=train.env_reward,
                action_repeat=config.env.action_repeat,
                has_success=config.env.has_success,
                release_delay=train.delay if frames.window else 0,
                seed=seed,
                overlap=train.overlap,
                multiprocessors=train.overlap_multiprocessors,
            )
            if self.rollout.note:
                print(f"--overlap-multiprocessors has no effect: {self.rollout.note}", file=sys.stderr)
            if state is not None:
                self._load(state)
        except BaseException:
            self.envs.close()
            raise
        self.logger = Logger(folder, self.rollout.env_steps, self.notes)
        self._checkpoint_due = time.monotonic() + 60 * train.checkpoint_minutes
        self._started = time.monotonic() - self.counters.seconds

    def _withheld(self) -> int:
        """Most rows of one environment that wait at a time: an open window, a closed one, and the delay."""
        frames, train = self.reward.frames, self.config.train
        return frames.window + frames.interval + -(-train.delay // train.envs) + 2 if frames.window else 0

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        self.envs.close()
        self.logger.close()

    def run(self, stop: Callable[[Trainer], bool] | None = None) -> Summary:
        """Trains until `steps` or `minutes`, evaluates, and returns the summary.

        Args:
            stop: asked after every tick; once it says true the run goes on to its last evaluation.

        Raises:
            TrainingDiverged: a loss is not finite; the last checkpoint is untouched.
            Interrupted: SIGTERM or SIGINT came; a checkpoint was written.
        """
        train = self.config.train
        progress = Progress(train.steps, self.rollout.env_steps)
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            while self.rollout.env_steps < train.steps:
                self.tick()
                progress.show(self.rollout.env_steps, self._status())
                self._stop_if_asked()
                if time.monotonic() >= self._checkpoint_due:
                    self.save()
                if self._time_is_up() or (stop is not None and stop(self)):
                    break
                if self._evaluation_is_due():
                    self._evaluate()
                    progress.restart(self.rollout.env_steps)
            progress.show(self.rollout.env_steps, self._status(), force=True)
            progress.end()
            self.save()
            evaluation = self._evaluate(video=True)
            self._stop_if_asked()
        finally:
            progress.end()
            for number, handler in previous.items():
                signal.signal(number, handler)
        assert evaluation is not None  # only a signal stops an evaluation, and that has been dealt with
        return self._summarise(evaluation)

    def _evaluation_is_due(self) -> bool:
        every, now = self.config.train.eval_every, self.rollout.env_steps
        # The last evaluation follows the loop.
        return 0 < every <= now - self.counters.evaluated_at and now < self.config.train.steps

    def _time_is_up(self) -> bool:
        return 0 < 60 * self.config.train.minutes <= self.seconds()

    def _stop_if_asked(self) -> None:
        if self._stop_signal is not None:
            self.save()
            raise Interrupted(
                self._stop_signal,
                f"stopped at step {self.rollout.env_steps} with a checkpoint; "
                f"continue with: genreward train --resume --out {self.folder.path}",
            )

    def tick(self) -> None:
        """One step of all environments, and the updates that it earns."""
        train, before = self.config.train, self.rollout.env_steps
        prefilling = before < train.prefill
        for total, success, length in self.rollout.begin(random=prefilling):
            values = {"episode/return": total, "episode/length": float(length)}
            values |= {"episode/success": float(success)} if self.config.env.has_success else {}
            self.logger.write(self.rollout.env_steps, values)
        due = 0
        if not prefilling and self.replay.can_sample():
            rows = self.config.agent.batch_size * self.config.agent.batch_length
            self.counters.owed += (self.rollout.env_steps - before) * train.train_ratio / rows
            due = int(self.counters.owed)
            self.counters.owed -= due
        if due and self.device.type == "cuda":
            self._update()  # launched before the host waits for the actions: the GPU goes on at once
            due -= 1
        try:
            self.rollout.send()
        except NotFinite as error:  # a loss that was not finite has reached the policy: say which
            self._read_meters()
            raise self._diverged(str(error)) from None
        for _ in range(due):
            self._update()
        self.rollout.finish()

    def _update(self) -> None:
        index = torch.from_numpy(self.replay.draw(self.config.agent.batch_size))
        if not self.reward.frozen:
            with self.rollout.frame_level():
                self._learn_reward()
        self.meters.add(self.agent.update_from(self.replay, index))
        self.counters.updates += 1
        if self.counters.updates % self.config.train.log_every == 0:
            self._read_meters()

    def _learn_reward(self) -> None:
        if self.rollout.env_steps < self.reward.learn_steps:
            self.meters.add(self.reward.update(self._pairs()))
        else:
            self.meters.add(self.reward.freeze(self._pairs() for _ in range(FREEZE_BATCHES)))

    def _pairs(self) -> Any:
        return self.replay.sample_pairs(self.config.reward.pairs)

    def _read_meters(self) -> None:
        """Logs the running means, and stops the run if one of them is not finite."""
        self.rollout.wait_for_frame_level()
        values = self.meters.read() | self.rollout.meters.read()
        if bad := first_not_finite(values):
            raise self._diverged(f"{bad} is {values[bad]}")
        if values:
            seconds = max(self.seconds(), 1e-9)
            values |= {"time/seconds": seconds, "time/updates": float(self.counters.updates)}
            values |= {"replay/rows": float(len(self.replay)), "env/restarts": float(self.envs.restarts)}
            values["env/discarded_episodes"] = float(self.rollout.discarded_episodes)
            self.logger.write(self.rollout.env_steps, values)

    def _diverged(self, what: str) -> TrainingDiverged:
        kept = f"the last good checkpoint is {self.folder.checkpoint}"
        return TrainingDiverged(
            f"{what} at step {self.rollout.env_steps}, update {self.counters.updates}; "
            + (kept if self.folder.checkpoint.exists() else "there is no checkpoint yet")
        )

    def _status(self) -> str:
        episodes = self.rollout.episodes
        if not episodes:
            return f"{self.counters.updates} updates"
        recent = list(episodes)[-20:]
        status = f"{self.counters.updates} updates  return {sum(e[0] for e in recent) / len(recent):.1f}"
        if self.config.env.has_success:
            status += f"  success {sum(e[1] for e in recent) / len(recent):.0%}"
        return status

    def seconds(self) -> float:
        """Wall time of training, evaluations included, over all the processes that the run has had."""
        return time.monotonic() - self._started

    def _evaluate(self, *, video: bool = False) -> Evaluation | None:
        train = self.config.train
        result = evaluate(
            AgentActor(self.agent, train.seed),
            self.config.env,
            episodes=train.eval_episodes,
            envs=train.envs,
            seed=train.seed,
            video=self.folder.video if video else None,
            stop=lambda: self._stop_signal is not None,
        )
        if result is None:
            return None
        self.counters.evaluated_at = self.rollout.env_steps
        self.logger.write(self.rollout.env_steps, {f"eval/{k}": v for k, v in result.scalars().items()})
        draw_curves(self.folder.path, self.folder.curves, self._title())
        return result

    def _title(self) -> str:
        config = self.config
        words = [config.env.description, f"preset {config.preset}", f"reward {config.reward.name}"]
        words += [f"env reward {config.train.env_reward}", f"seed {config.train.seed}", *self.notes]
        return "  ·  ".join(words)

    def _summarise(self, evaluation: Evaluation) -> Summary:
        summary = Summary.of_run(
            self.folder.path,
            evaluation,
            env_steps=self.rollout.env_steps,
            updates=self.counters.updates,
            seconds=self.seconds(),
            episodes=self.rollout.episode_count,
            discarded=self.rollout.discarded_episodes,
            device=describe_device(self.device),
            notes=self.notes,
        )
        summary.save(self.folder.summary)
        return summary

    def _on_signal(self, number: int, _frame: object) -> None:
        self._stop_signal = number

    # ---- checkpoints

    def save(self) -> None:
        """Writes a checkpoint: first the new rows of the replay, then the file that refers to them.

        Raises:
            TrainingDiverged: a metric since the last reading is not finite; nothing is written.
        """
        self._read_meters()
        self.counters.seconds = self.seconds()
        replay = self.replay.save(self.folder.replay)
        rollout = self.rollout
        save_checkpoint(
            self.folder.path,
            {
                "agent": self.agent.state_dict(),
                "reward": self.reward.state_dict(),
                "replay": replay,
                "withheld": self.replay.withheld(),
                "pending": rollout.pending_state(),
                "envs": self.envs.state(),
                "counters": vars(self.counters) | {"env_steps": rollout.env_steps, "episodes": rollout.episode_count},
                "discarded_episodes": rollout.discarded_episodes,
                "recent_episodes": [list(episode) for episode in rollout.episodes],
                "prefill_generator": rollout.generator.get_state(),
            },
        )
        self.replay.commit(self.folder.replay)
        self._checkpoint_due = time.monotonic() + 60 * self.config.train.checkpoint_minutes

    def _load(self, state: dict[str, Any]) -> None:
        self.agent.load_state_dict(state["agent"])
        self.reward.load_state_dict(state["reward"])
        self.replay.load(self.folder.replay, state["replay"])
        self.replay.load_withheld(state["withheld"])
        counters = dict(state["counters"])
        self.rollout.resume(counters.pop("env_steps"), state["pending"])
        self.rollout.episode_count = counters.pop("episodes")
        self.rollout.discarded_episodes = state["discarded_episodes"]
        self.rollout.episodes.extend((e[0], e[1], e[2]) for e in state["recent_episodes"])
        self.rollout.generator.set_state(state["prefill_generator"])
        self.counters = replace(Counters(), **counters)
