"""Episodes of Meta-World's scripted experts, with noise and without, and of random actions, as features and actions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from genreward_fast.encoders.image import ImageEncoder
from genreward_fast.envs.env_config import EnvConfig
from genreward_fast.envs.expert import ExpertEpisode, expert_episode
from genreward_fast.envs.metaworld_env import MetaWorldEnv
from genreward_fast.errors import UserError
from genreward_fast.rewards.pairs import PairMemory
from genreward_fast.training.checkpoint import load_checkpoint
from genreward_fast.training.replay import Replay
from genreward_fast.training.run_folder import RunFolder
from genreward_fast.training.settings import RunConfig
from genreward_fast.types import Batch

Sampler = Callable[[int], Batch]
STATE = slice(0, 18)  # of Meta-World's observation: hand, gripper and objects now, without the step before and the goal
AFTER = 20  # steps for which an episode of the replay goes on after its success, as an agent's does
NOISE = 0.5


@dataclass(frozen=True)
class Episode:
    """T steps: features by encoder (T + 1, D), actions (T, A), and the number of the first frame that shows success."""

    features: dict[str, Tensor]
    action: Tensor
    solved: int | None


class Recorder:
    """Plays episodes of one task and encodes their frames.

    Args:
        task: of Meta-World.
        encoder: ψ; None for the simulator's state alone.
        steps: of an episode, at most.
    """

    def __init__(self, task: str, encoder: ImageEncoder | None, steps: int):
        self.config = EnvConfig(task)
        self.env = MetaWorldEnv(self.config)
        self.encoder = encoder
        self.steps = steps

    def expert(self, seed: int, after: int = 0) -> Episode | None:
        """Ends `after` steps after success; None if the expert fails."""
        solved = self._play(seed, ()).first_success
        if solved is None:
            return None
        return self._encoded(self._play(seed, self._sizes, max_steps=solved + 1 + after, stop_at_success=not after))

    def experts(self, count: int, first_seed: int, after: int = 0) -> list[Episode]:
        """The first `count` successes from `first_seed` on.

        Raises:
            UserError: fewer than that in five times as many starts.
        """
        found: list[Episode] = []
        for seed in range(first_seed, first_seed + 5 * count):
            episode = self.expert(seed, after)
            found += [episode] if episode is not None else []
            if len(found) == count:
                return found
        raise UserError(f"{self.config.task}: its expert succeeds too rarely; ask for fewer episodes")

    def noisy(self, seed: int) -> Episode:
        options = {"noise": NOISE, "max_steps": self.steps, "stop_at_success": False}
        return self._encoded(self._play(seed, self._sizes, **options))

    def random(self, seed: int, scripted: int = 0) -> Episode:
        """Random actions, behind `scripted` steps of the expert's."""
        options = {"random_from": scripted, "max_steps": self.steps, "stop_at_success": False}
        return self._encoded(self._play(seed, self._sizes, **options))

    def close(self) -> None:
        self.env.close()

    @property
    def _sizes(self) -> tuple[int, ...]:
        return () if self.encoder is None else (self.encoder.size,)

    def _play(self, seed: int, sizes: tuple[int, ...], **options) -> ExpertEpisode:
        return expert_episode(self.config, seed, sizes, env=self.env, **options)

    def _encoded(self, episode: ExpertEpisode) -> Episode:
        features = {"state": torch.from_numpy(episode.states[:, STATE]).float()}
        if self.encoder is not None:
            features["dino"] = self.encoder(torch.from_numpy(episode.frames[self.encoder.size])).cpu()
        solved = None if episode.first_success is None else episode.first_success + 1
        return Episode(features, torch.from_numpy(episode.actions), solved)


def replay_of(episodes: list[Episode], features: str, seed: int, device: torch.device) -> Sampler:
    """Pairs of consecutive rows of the episodes, all in one memory."""
    rows = [(episode.features[features][:-1], episode.action) for episode in episodes]
    return PairMemory.of_episodes(rows, device, seed).sample


def replay_of_run(run: Path) -> tuple[RunConfig, Sampler]:
    """The settings of a run of `genreward train`, and pairs out of its replay as the last checkpoint has it.

    Raises:
        UserError: no run there, its files are damaged, or it kept no features.
    """
    folder = RunFolder(run)
    folder.require_run()
    config = RunConfig.load(folder.config)
    state = load_checkpoint(folder.path)["replay"]
    if not state["layout"]["feature_dim"]:
        raise UserError(f"{run}: its replay holds no features (--no-fb or --reward none); name a run with FB")
    replay = Replay(capacity=config.train.replay_capacity, **state["layout"])
    replay.load(folder.replay, state)
    return config, replay.sample_pairs
