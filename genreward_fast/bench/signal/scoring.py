"""Scores whole episodes as training does: window by window, each when it closes; and trains a reward that learns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from genreward_fast.bench.signal.episodes import TaskEpisodes
from genreward_fast.errors import RunFailed, UserError
from genreward_fast.goals.assets.check import auc
from genreward_fast.goals.assets.recordings import Episode
from genreward_fast.goals.progress import progress
from genreward_fast.rewards.base import RewardModel
from genreward_fast.rewards.pairs import PairMemory
from genreward_fast.rewards.windows import WindowCollector
from genreward_fast.training.trainer import FREEZE_BATCHES

COMPARISONS = {
    "expert_over_random": ("expert", "random"),
    "expert_over_half": ("expert", "half-expert"),
    "half_over_random": ("half-expert", "random"),
}
"""Name of an AUC -> which episodes should be paid more, and than which."""
_FRAMES_AT_ONCE = 256


@torch.no_grad()
def episode_returns(reward: RewardModel, episodes: TaskEpisodes, chosen: Sequence[Episode], rows: int) -> Tensor:
    """What a reward pays for the last `rows` rows of each episode, all played side by side: (B,) float64.

    Raises:
        UserError: they are too few for a window.
        RunFailed: what it pays is not finite.
    """
    spec, device = reward.frames, episodes.recordings.device
    if rows < spec.window:
        raise UserError(f"its windows have {spec.window} rows, but {episodes.task}'s episodes {rows}: none ever closes")
    where = episodes.last_rows(chosen, rows)
    collector = WindowCollector(spec, len(chosen), episodes.action_size, device)
    envs = np.arange(len(chosen))
    nothing = torch.zeros(len(chosen), device=device)
    paid = torch.zeros(len(chosen), dtype=torch.float64, device=device)
    collector.begin(envs)
    for row in progress(where.unbind(1), unit="row", desc=f"{episodes.task}: scoring", leave=False):
        for_features, for_clips = collector.wanted(envs)
        if len(for_features):
            shown = episodes.frames(row, spec.feature_size)
            collector.observe_features(for_features, reward.features(shown))
        if len(for_clips):
            collector.observe_clip_frames(for_clips, episodes.frames(row, spec.clip_size))
        for closed in collector.complete(envs, episodes.actions(row), nothing):
            paid[closed.envs] += reward.score(closed.window).double().sum(1)
    if not paid.isfinite().all():
        raise RunFailed(f"{episodes.task}: what it pays is not finite")
    return paid


def learn(reward: RewardModel, episodes: TaskEpisodes, updates: int, batch: int, seed: int) -> None:
    """Trains a reward that learns on the training episodes of all kinds, then freezes it; another one stays as it is.

    Args:
        batch: pairs of rows in an update.
    """
    if reward.frozen:
        return
    rows = [_learned_rows(reward, episodes, episode) for episode in episodes.training]
    memory = PairMemory.of_episodes(rows, episodes.recordings.device, seed)
    for _ in progress(range(updates), unit="update", desc=f"{episodes.task}: FB", leave=False):
        reward.update(memory.sample(batch))
    reward.freeze(memory.sample(batch) for _ in range(FREEZE_BATCHES))


def ranking(returns: dict[str, Tensor]) -> dict[str, float]:
    """The AUCs of `COMPARISONS`: how often an episode of one kind (B,) is paid more than one of another; ties half."""
    return {name: auc(returns[more], returns[less]) for name, (more, less) in COMPARISONS.items()}


def ranking_text(figures: dict[str, float]) -> str:
    """The AUCs in words."""
    return ", ".join(f"{name.replace('_', ' ')} {figures[name]:.2f}" for name in COMPARISONS)


@torch.no_grad()
def _learned_rows(reward: RewardModel, episodes: TaskEpisodes, episode: Episode) -> tuple[Tensor, Tensor]:
    """Features (T, D) and actions (T, A) of an episode."""
    rows = episodes.last_rows([episode], episode.length - 1)[0]
    features = [reward.features(episodes.frames(p, reward.frames.feature_size)) for p in rows.split(_FRAMES_AT_ONCE)]
    return torch.cat(features), episodes.actions(rows)
