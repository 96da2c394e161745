"""All networks of an agent, and its return range, in one module."""

from __future__ import annotations

import copy

import torch
from torch import nn

from genreward_fast.agent.config import AgentConfig
from genreward_fast.agent.decoder import Decoder
from genreward_fast.agent.encoder import Encoder
from genreward_fast.agent.heads import Actor, ContinuationHead, ScalarHead
from genreward_fast.agent.nets import initialize
from genreward_fast.agent.returns import ReturnRange
from genreward_fast.agent.rssm import RSSM


class Model(nn.Module):
    """World model (encoder, rssm, decoder, reward, continuation), actor, critic, slow critic, and return range.

    The parameters hold anything until `initialize`.
    """

    def __init__(self, config: AgentConfig, action_size: int) -> None:
        super().__init__()
        self.encoder = Encoder(config.sizes, config.compute_dtype)
        self.rssm = RSSM(config, action_size, self.encoder.size)
        self.decoder = Decoder(config.sizes, config.compute_dtype)
        self.reward = ScalarHead(config, layers=1)
        self.continuation = ContinuationHead(config)
        self.actor = Actor(config, action_size)
        self.critic = ScalarHead(config, layers=3)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.return_range = ReturnRange(config.return_rate, config.return_limit, config.return_low, config.return_high)

    def initialize(self, generator: torch.Generator) -> None:
        """Draws the parameters; the slow critic becomes a copy of the critic."""
        initialize(self, generator)
        self.slow_critic.load_state_dict(self.critic.state_dict())

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that the optimiser updates: all but the slow critic's."""
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad]

    @torch.no_grad()
    def update_slow_critic(self, rate: float) -> None:
        """Moves the slow critic towards the critic by `rate`."""
        torch._foreach_lerp_(list(self.slow_critic.parameters()), list(self.critic.parameters()), rate)
