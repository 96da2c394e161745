"""All networks of an agent, and its return range, in one module."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from genreward_fast.agent.config import AgentConfig
from genreward_fast.agent.decoder import Decoder
from genreward_fast.agent.encoder import Encoder
from genreward_fast.agent.flat import Casts, Flat
from genreward_fast.agent.gradients import Gradients
from genreward_fast.agent.heads import Actor, ContinuationHead, ScalarHead
from genreward_fast.agent.nets import initialize
from genreward_fast.agent.returns import ReturnRange
from genreward_fast.agent.rssm import RSSM
from genreward_fast.kernels.laprop import Follower


class Model(nn.Module):
    """World model (encoder, rssm, decoder, reward, continuation), actor, critic, slow critic, and return range.

    The parameters hold anything until `initialize`, and lie anywhere until `flatten`.

    Attributes, from `flatten` on:
        flat: the trained parameters, in one buffer. The critic's are the last.
        slow: those of the slow critic, laid out as the critic's.
        casts, slow_casts: their copies in the dtype that the networks compute in; None if that is their own.
    """

    flat: Flat
    slow: Flat
    casts: Casts | None = None
    slow_casts: Casts | None = None

    def __init__(self, config: AgentConfig, action_size: int) -> None:
        super().__init__()
        self.dtype = config.compute_dtype
        self.encoder = Encoder(config.sizes, config.compute_dtype)
        self.rssm = RSSM(config, action_size, self.encoder.size)
        self.decoder = Decoder(config.sizes, config.compute_dtype)
        self.reward = ScalarHead(config, layers=1)
        self.continuation = ContinuationHead(config)
        self.actor = Actor(config, action_size)
        self.critic = ScalarHead(config, layers=3)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.return_range = ReturnRange(config.return_rate, config.return_limit, config.return_low, config.return_high)
        if config.wide_dtype == torch.float64:
            self.double()  # the bins, too: the same numbers as in float32

    def initialize(self, generator: torch.Generator) -> None:
        """Draws the parameters; the slow critic becomes a copy of the critic."""
        initialize(self, generator)
        self.slow_critic.load_state_dict(self.critic.state_dict())

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that the optimiser updates: all but the slow critic's."""
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad]

    def flatten(self) -> None:
        """Moves the parameters into two buffers on the device where they are; they must stay there from now on."""
        self.flat, self.slow = Flat(self.trained()), Flat(self.slow_critic.named_parameters())
        if self.dtype != self.flat.buffer.dtype:
            self.casts = Casts(self.flat, self.dtype, self)
            self.slow_casts = Casts(self.slow, self.dtype, self.slow_critic)

    def follower(self, rate: float) -> Follower:
        """The slow critic as what follows the critic by `rate`, the last of the trained parameters."""
        copy = None if self.slow_casts is None else self.slow_casts.buffer
        return Follower(self.flat.start("critic."), self.slow.buffer, copy, rate)

    def refresh(self, force: bool = False) -> None:
        """Renews the copies of parameters that were written to; called before each acting and each update."""
        for casts in (self.casts, self.slow_casts):
            if casts is not None:
                casts.refresh(force)

    @contextmanager
    def recording(self) -> Iterator[Gradients]:
        """Gathers the gradients of losses that are computed inside."""
        leaves = nullcontext([[tensor] for tensor in self.flat.tensors])
        with leaves if self.casts is None else self.casts.recording() as uses:
            yield Gradients(self.flat.names, uses)
