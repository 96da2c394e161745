"""Options of the reward's benchmarks, and what they time."""

from __future__ import annotations

import pytest
import torch

from genreward_fast.bench.reward import ENVS
from genreward_fast.bench.reward_subjects import Subjects
from genreward_fast.encoders.presets import EncoderConfig


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--preset", default="tiny", help="tiny, or paper (full-size encoders)")
    parser.addoption("--weights", default="auto", help="pretrained, or random to benchmark without trained weights")
    parser.addoption("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.addoption("--envs", type=int, nargs="+", default=list(ENVS), help="numbers of environments")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "envs" in metafunc.fixturenames:
        metafunc.parametrize("envs", metafunc.config.getoption("envs"))


@pytest.fixture(scope="session")
def subjects(request: pytest.FixtureRequest) -> Subjects:
    option = request.config.getoption
    return Subjects(EncoderConfig(preset=option("preset"), weights=option("weights")), torch.device(option("device")))
