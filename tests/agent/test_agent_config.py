"""Sizes and the checks of a configuration."""

import pytest
import torch

from genreward_fast.agent import SIZES, AgentConfig, NetworkSize
from genreward_fast.agent.model import Model
from genreward_fast.errors import UserError


@pytest.mark.parametrize("size", [name for name in SIZES if name.endswith("M")])
def test_parameter_counts_are_near_their_names(size):
    with torch.device("meta"):
        model = Model(AgentConfig(size=size), 4)
    count = sum(p.numel() for _, p in model.trained())
    # The published counts include inputs and outputs other than images.
    assert 0.8 < count / (float(size[:-1]) * 1e6) < 1.05


def test_tiny_is_tiny():
    model = Model(AgentConfig(size="tiny"), 4)
    assert 5e5 < sum(p.numel() for _, p in model.trained()) < 1e6


def test_slow_critic_is_not_trained():
    model = Model(AgentConfig(size="tiny"), 4)
    assert not any("slow" in name for name, _ in model.trained())
    assert {name.split(".")[0] for name, _ in model.trained()} == {
        "encoder",
        "rssm",
        "decoder",
        "reward",
        "continuation",
        "actor",
        "critic",
    }


def test_unknown_size_lists_the_known_ones():
    with pytest.raises(UserError, match=r"13M.*12M.*400M"):
        AgentConfig(size="13M")


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "float16"},
        {"batch_length": 1},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"warmup": -1},
        {"imagination": 0},
        {"context": 0},
        {"bins": 254},
        {"network": NetworkSize(deter=60, hidden=8, classes=4, depth=4, units=8)},
        {"network": NetworkSize(deter=64, hidden=8, classes=300, depth=4, units=8)},
    ],
)
def test_bad_values_are_refused_in_one_line(options):
    with pytest.raises(UserError) as error:
        AgentConfig(**options)
    assert "\n" not in str(error.value)


def test_defaults_are_the_published_ones():
    config = AgentConfig()
    assert (config.batch_size, config.batch_length, config.imagination, config.context) == (16, 64, 15, 1)
    assert (config.lr, config.warmup, config.agc, config.eps) == (4e-5, 1000, 0.3, 1e-20)
    assert config.discount == pytest.approx(1 - 1 / 333)
    assert config.compute_dtype == torch.bfloat16
