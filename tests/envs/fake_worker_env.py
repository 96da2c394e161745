"""An environment for the tests of the worker processes: no simulator, and it fails in the way it is told to."""

import os
import sys
import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from genreward_fast.errors import UserError


@dataclass(frozen=True)
class FakeConfig:
    action_size: ClassVar[int] = 4

    length: int = 4
    fail: str = ""  # "", "user", "exception", "exit", "exit-at-reset", "slow"
    fail_at: int = 0


class FakeEnv:
    """Each picture's pixels are 10 · row + the seed's last digit; the reward is the sum of the action."""

    def __init__(self, config):
        self.config = config

    def reset(self, *, seed=None):
        self.seed, self.row = seed, 0
        if self.config.fail == "exit-at-reset":
            sys.stderr.write("no luck at reset\n")
            sys.stderr.flush()
            os._exit(7)

    def step(self, action):
        self.row += 1
        if self.row == self.config.fail_at:
            if self.config.fail == "exception":
                raise ZeroDivisionError("the fake failed on purpose")
            if self.config.fail == "user":
                raise UserError("the fake refuses this value")
            if self.config.fail == "exit":
                sys.stderr.write("going down\n")
                sys.stderr.flush()
                os._exit(9)
            if self.config.fail == "slow":
                time.sleep(60)
        return None, float(action.sum()), False, self.row >= self.config.length, {"success": self.row == 2}

    def render_sizes(self, sizes, out):
        for size in sizes:
            out[size][...] = 10 * self.row + self.seed % 10


def make(**config):
    return FakeEnv(FakeConfig(**config))


def make_without_torch(**config):
    assert "torch" not in sys.modules
    assert not any(name.startswith("multiprocessing.resource") for name in sys.modules)
    assert os.environ["OMP_NUM_THREADS"] == "1"
    return make(**config)


def make_nothing(**config):
    return make(**config, no_such_field=np.nan)
