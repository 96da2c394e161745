"""Seeds of episodes: different for every run, split, environment and episode, and the same when a run is repeated."""

from __future__ import annotations

from typing import Literal

import numpy as np

Split = Literal["train", "eval", "demos"]
_SPLITS: dict[str, int] = {"train": 0, "eval": 1, "demos": 2}


def episode_seed(seed: int, split: Split, env: int, episode: int) -> int:
    """The seed, 64 bits, of an episode.

    Args:
        seed: the run's.
        split: "train", "eval" or "demos" (demonstrations by the experts).
        env: the environment's number; of a demonstration, the task's in `TASKS`.
        episode: how many episodes this environment has started before.
    """
    if split not in _SPLITS:
        raise ValueError(f"split must be 'train', 'eval' or 'demos', not {split!r}")
    sequence = np.random.SeedSequence(seed, spawn_key=(_SPLITS[split], env, episode))
    return int(sequence.generate_state(1, np.uint64)[0])
