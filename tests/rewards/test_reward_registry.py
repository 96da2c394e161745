import dataclasses
from types import SimpleNamespace

import pytest
import torch

from genreward_fast.errors import UserError
from genreward_fast.rewards.base import RewardModel, total
from genreward_fast.rewards.config import FBConfig, RewardConfig
from genreward_fast.rewards.genreward import GenReward
from genreward_fast.rewards.none import NoReward
from genreward_fast.rewards.registry import REWARDS, make_reward


def test_the_papers_steps():
    config = RewardConfig()
    assert len(config.clip_steps) == 16
    assert config.clip_steps[:3] == (0, 8, 17)
    assert config.clip_steps[-1] == 127


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alpha", -1.0),
        ("alpha", float("nan")),
        ("beta", float("inf")),
        ("window", 0),
        ("interval", 0),
        ("clip_frames", 129),
        ("fb_steps", 0),
        ("credit", "last"),
    ],
)
def test_bad_settings(field, value):
    with pytest.raises(UserError, match=field.replace("_", "-")):
        RewardConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("z_dim", 0),
        ("heads", 0),
        ("reduce", "max"),
        ("lr", 0.0),
        ("tau", 1.5),
        ("gamma", 1.0),
        ("ortho", -1.0),
        ("mix", 2),
    ],
)
def test_bad_fb_settings(field, value):
    with pytest.raises(UserError, match=field):
        FBConfig(**{field: value})


def test_a_reward_of_nothing():
    with pytest.raises(UserError, match="--reward none"):
        RewardConfig(use_video=False, use_fb=False)
    RewardConfig(name="none", use_video=False, use_fb=False)


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(UserError, match="diffusion-reward, genreward, none, roboclip, tadpole, video-tadpole, viper"):
        make_reward(RewardConfig(name="robo"), None, None, 4, "cpu")


def test_genreward_needs_a_goal():
    with pytest.raises(UserError, match="--goal"):
        make_reward(RewardConfig(), None, None, 4, "cpu")


def test_only_the_needed_encoder_is_loaded(reward_config, tiny_goal, video_encoder):
    encoders = SimpleNamespace(video=video_encoder)  # has no `image`
    reward = make_reward(dataclasses.replace(reward_config, use_fb=False), tiny_goal, encoders, 2, "cpu")
    assert isinstance(reward, GenReward)
    with pytest.raises(AttributeError):
        make_reward(reward_config, tiny_goal, encoders, 2, "cpu")


def test_no_reward(reward_config, window, pairs):
    reward = make_reward(RewardConfig(name="none"), None, None, 2, "cpu")
    assert isinstance(reward, NoReward)
    assert isinstance(reward, RewardModel)
    assert reward.frozen
    assert not reward.frames.closes_at(128)
    shown = window(reward_config)
    assert torch.equal(reward.score(shown), torch.zeros(3, 12))
    assert torch.equal(total(reward.parts(shown)), torch.zeros(3, 12))
    assert reward.update(pairs(4)) == reward.freeze([]) == {}
    reward.load_state_dict(reward.state_dict())
    with pytest.raises(UserError, match="genreward"):
        reward.load_state_dict({"identity": {"reward": "genreward"}})


def test_registered_names_are_the_configs_names():
    names = {"diffusion-reward", "genreward", "none", "roboclip", "tadpole", "video-tadpole", "viper"}
    assert set(REWARDS) == names
