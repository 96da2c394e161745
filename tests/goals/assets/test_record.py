"""Recordings of real episodes, in small: what is written down leads from frame to frame."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from genreward_fast.envs.env_config import EnvConfig
from genreward_fast.envs.metaworld_env import MetaWorldEnv
from genreward_fast.goals.assets.plan import BuildFolder, RecordingConfig
from genreward_fast.goals.assets.record import record
from genreward_fast.goals.assets.recordings import read_recordings

TASK, EVERY = "reach", 3


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = BuildFolder(tmp_path_factory.mktemp("recorded"))
    episodes = {"train": (1, 0, 0), "held_out": (0, 1, 1), "sizes": (16,), "every": EVERY}
    record(RecordingConfig((TASK,), after=4, random_steps=8, **episodes), folder, workers=1)
    return folder


def test_the_recorded_actions_lead_through_the_recorded_states(recorded):
    recordings = read_recordings(recorded, (TASK,), (16,), torch.device("cpu"))
    with safe_open(str(recorded.recording(TASK)), framework="pt") as file:
        lines = json.loads(file.metadata()["episodes"])
    assert [(e.kind, e.held_out) for e in recordings.episodes] == [
        ("expert", False), ("half-expert", True), ("random", True),
    ]  # fmt: skip
    env = MetaWorldEnv(EnvConfig(TASK))
    try:
        for episode, line in zip(recordings.episodes, lines):
            rows = slice(episode.start, episode.start + episode.length)
            actions, states = recordings.actions[rows], recordings.states[rows]
            assert actions.shape == (episode.length, EVERY, 4)
            assert not actions[-1].any()
            env.reset(seed=line["seed"])
            for row in range(episode.length - 1):
                for action in actions[row].numpy():
                    state = env.step(action)[0]
                torch.testing.assert_close(torch.from_numpy(state).float(), states[row + 1])
    finally:
        env.close()


def test_recordings_from_before_actions_were_kept_have_none(recorded, tmp_path):
    older = BuildFolder(tmp_path)
    path = recorded.recording(TASK)
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    del tensors["actions"]
    older.recording(TASK).parent.mkdir()
    save_file(tensors, older.recording(TASK), metadata)
    assert read_recordings(older, (TASK,), (16,), torch.device("cpu")).actions is None
