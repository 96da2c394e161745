"""Generative rewards for reinforcement learning, exact and at the hardware's speed.

The public names below are imported when they are first used, so that `import genreward_fast` stays cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genreward_fast.errors import UserError
    from genreward_fast.goals.goal import Goal
    from genreward_fast.rewards.genreward import GenReward
    from genreward_fast.training.policy import Policy
    from genreward_fast.wrappers import GenRewardEnv, GenRewardVectorEnv

__version__ = "0.1.0"
__all__ = ["GenReward", "GenRewardEnv", "GenRewardVectorEnv", "Goal", "Policy", "UserError"]

_HOMES = {
    "GenReward": "genreward_fast.rewards.genreward",
    "GenRewardEnv": "genreward_fast.wrappers",
    "GenRewardVectorEnv": "genreward_fast.wrappers",
    "Goal": "genreward_fast.goals.goal",
    "Policy": "genreward_fast.training.policy",
    "UserError": "genreward_fast.errors",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
