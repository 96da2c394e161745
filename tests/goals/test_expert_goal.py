from __future__ import annotations

import numpy as np
import pytest
import torch

from genreward_fast.encoders.presets import Encoders
from genreward_fast.envs.env_config import EnvConfig
from genreward_fast.envs.expert import expert_success
from genreward_fast.envs.tasks import describe
from genreward_fast.errors import UserError
from genreward_fast.goals.expert_goal import goal_from_expert


def test_ends_exactly_where_the_task_is_solved(encoders: Encoders) -> None:
    goal = goal_from_expert("reach-v3", encoders, seed=0, frames=9, size=32)
    episode = expert_success(EnvConfig(task="reach"), 0, (32,))
    assert episode.first_success is not None
    solved = episode.first_success + 1
    frames = episode.frames[32]
    indices = np.rint(np.linspace(0, solved, 9)).astype(int)
    assert torch.equal(goal.video, torch.from_numpy(frames[indices]))
    assert indices[-1] == solved
    assert goal.frame_index == 8
    assert goal.text == describe("reach")
    assert goal.scores is not None
    expected = {"source": "scripted expert", "task": "reach", "seed": episode.seed, "camera": "corner", "steps": solved}
    assert {key: goal.provenance[key] for key in expected} == expected
    assert goal.note == "untrained encoders"
    assert goal.clip(16, 32).shape == (16, 32, 32, 3)


def test_bad_values() -> None:
    with pytest.raises(UserError, match="no such task"):
        goal_from_expert("fly-away", size=32)
    with pytest.raises(UserError, match="camera"):
        goal_from_expert("reach", camera="front", size=32)
    with pytest.raises(UserError, match="frames 1"):
        goal_from_expert("reach", frames=1, size=32)
