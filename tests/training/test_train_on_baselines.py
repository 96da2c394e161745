"""The loop with the rewards of other papers: sixty steps, and what was paid."""

import dataclasses

import pytest
import torch
from diffusers import MotionAdapter

from genreward_fast.agent.config import NetworkSize
from genreward_fast.config import Overrides, apply, resolve
from genreward_fast.encoders.presets import Encoders
from genreward_fast.encoders.s3d_network import TextVideoS3D
from genreward_fast.goals.goal import Goal
from genreward_fast.rewards.roboclip_config import RoboClipConfig
from genreward_fast.rewards.tadpole.architectures import MOTION
from genreward_fast.rewards.tadpole.small_model import SmallModel
from genreward_fast.training import start
from genreward_fast.training.logger import read_metrics
from genreward_fast.training.settings import RunConfig
from genreward_fast.training.start import start_run

SMALL = NetworkSize(deter=64, hidden=16, classes=4, depth=2, units=16, stoch=4)


def small_config(reward: str, reward_weights, **flags) -> RunConfig:
    """Windows of 8 steps in episodes of 16."""
    values = {
        "task": "reach", "device": "cpu", "steps": 60, "envs": 1, "prefill": 20, "train_ratio": 4,
        "episode_length": 16, "window": 8, "interval": 8, "clip_frames": 4, "release_delay": 16, "eval_every": 0,
        "eval_episodes": 1, "log_every": 2, "checkpoint_minutes": 60.0, "reward": reward,
        "reward_weights": str(reward_weights),
    } | flags  # fmt: skip
    config = apply(resolve("tiny", Overrides()), Overrides(**values))
    agent = dataclasses.replace(config.agent, network=SMALL, batch_size=4, batch_length=8)
    roboclip = dataclasses.replace(config.reward.roboclip, size=32)
    return dataclasses.replace(config, agent=agent, reward=dataclasses.replace(config.reward, roboclip=roboclip))


@pytest.fixture(scope="module")
def goal(tmp_path_factory):
    """The folder of a goal of seeded noise: making one from an expert takes longer than the run."""
    video = torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Goal("reach the red ball", video, 7).save(tmp_path_factory.mktemp("goals") / "goal")


def test_weights_that_a_reward_does_not_use_are_not_spoken_of(tmp_path):
    assert small_config("roboclip", tmp_path).weights_note == ""
    assert small_config("none", "").weights_note == ""
    assert small_config("genreward", "", fb_steps=100).weights_note == "untrained encoders"
    assert small_config("tadpole", "", weights="random").weights_note == "random weights"


def test_a_goal_for_another_reward_is_made_without_encoders(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(start, "goal_from_expert", lambda *given, **named: asked.append((given, named)))
    encoders = Encoders(small_config("genreward", "", fb_steps=100).encoders)
    start.default_goal(small_config("tadpole", tmp_path), encoders)
    start.default_goal(small_config("genreward", "", fb_steps=100), encoders)
    assert [given for given, _ in asked] == [("reach", None), ("reach", encoders)]
    assert asked[0][1]["select"] == "last"


def test_roboclip(goal, tmp_path):
    torch.manual_seed(0)
    network = TextVideoS3D(dim=16, words=4, word_dim=4, text_hidden=4)
    with torch.no_grad():
        network.fc.bias.fill_(1.0)  # so that no product is 0
    torch.save(network.state_dict(), tmp_path / "s3d.pth")
    config = small_config("roboclip", tmp_path / "s3d.pth")
    assert config.reward.roboclip == RoboClipConfig(size=32)
    summary = start_run(config, tmp_path / "run", goal=goal, resume=False)
    assert summary.env_steps == 60
    assert summary.updates > 0
    assert summary.notes == []
    assert set(summary.rewards) >= {"roboclip", "roboclip_raw"}
    paid = [record["reward/roboclip"] for record in read_metrics(tmp_path / "run") if "reward/roboclip" in record]
    raw = [record["reward/roboclip_raw"] for record in read_metrics(tmp_path / "run") if "reward/roboclip" in record]
    assert paid
    assert all(value != 0 for value in paid)
    torch.testing.assert_close(torch.tensor(paid) * 8, torch.tensor(raw))  # spread over eight rows
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["reward"]["identity"]["reward"] == "roboclip"


@pytest.mark.parametrize("reward", ["tadpole", pytest.param("video-tadpole", marks=pytest.mark.slow)])
def test_tadpole(reward, goal, tmp_path):
    SmallModel(["reach the red ball", "press the button"], 0).save(tmp_path / "model")
    torch.manual_seed(0)
    MotionAdapter(**MOTION["tiny"]).save_pretrained(tmp_path / "motion")
    flags = {"motion_adapter": str(tmp_path / "motion")} if reward == "video-tadpole" else {}
    summary = start_run(small_config(reward, tmp_path / "model", **flags), tmp_path / "run", goal=goal, resume=False)
    assert summary.env_steps == 60
    assert summary.updates > 0
    assert summary.notes == []
    name = reward.replace("-", "_")
    assert set(summary.rewards) >= {name, f"{name}_raw", "alignment_raw", "reconstruction_raw"}
    records = [record for record in read_metrics(tmp_path / "run") if f"reward/{name}" in record]
    assert records
    for record in records:  # every row is paid its own
        assert record[f"reward/{name}"] == pytest.approx(record[f"reward/{name}_raw"], rel=1e-5)
        assert record["reward/alignment_raw"] > 0
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["reward"]
    assert state["identity"]["goal text"] == "reach the red ball"
    assert state["drawn"] >= (60 if reward == "tadpole" else 6)  # frames, or windows
