"""DreamerV3 in plain PyTorch."""

from genreward_fast.agent.agent import Agent, Carry
from genreward_fast.agent.config import SIZES, AgentConfig, NetworkSize
from genreward_fast.agent.sampling import Draws, RandomSampler, RecordedSampler, RecordingSampler, Sampler

__all__ = [
    "SIZES",
    "Agent",
    "AgentConfig",
    "Carry",
    "Draws",
    "NetworkSize",
    "RandomSampler",
    "RecordedSampler",
    "RecordingSampler",
    "Sampler",
]
