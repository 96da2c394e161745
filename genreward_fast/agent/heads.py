"""Heads that read the features [deter, flattened one-hot stoch]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genreward_fast.agent.config import AgentConfig
from genreward_fast.agent.distributions import Binary, Normal, TwoHot, symexp_bins
from genreward_fast.agent.nets import MLP, Linear


class ScalarHead(nn.Module):
    """Reward or value: a two-hot distribution. Its output layer starts at zero, so that it first predicts exactly 0."""

    bins: Tensor

    def __init__(self, config: AgentConfig, layers: int) -> None:
        super().__init__()
        self.dtype = config.compute_dtype
        self.mlp = MLP(config.feature_size, config.sizes.units, layers)
        self.logits = Linear(config.sizes.units, config.bins, outscale=0.0)
        self.register_buffer("bins", symexp_bins(config.bins), persistent=False)

    def forward(self, features: Tensor) -> TwoHot:
        """(..., features) to a distribution over (...)."""
        return TwoHot(self.logits(self.mlp(features.to(self.dtype))), self.bins)


class ContinuationHead(nn.Module):
    """Whether the episode goes on."""

    def __init__(self, config: AgentConfig, layers: int = 1) -> None:
        super().__init__()
        self.dtype = config.compute_dtype
        self.mlp = MLP(config.feature_size, config.sizes.units, layers)
        self.logit = Linear(config.sizes.units, 1)

    def forward(self, features: Tensor) -> Binary:
        """(..., features) to a distribution over (...)."""
        return Binary(self.logit(self.mlp(features.to(self.dtype))).squeeze(-1))


class Actor(nn.Module):
    """The policy: a normal with its mean in (-1, 1) and its deviation in (min_std, max_std), not squashed further."""

    def __init__(self, config: AgentConfig, action_size: int, layers: int = 3) -> None:
        super().__init__()
        self.dtype, self.min_std, self.max_std = config.compute_dtype, config.min_std, config.max_std
        self.mlp = MLP(config.feature_size, config.sizes.units, layers)
        self.mean = Linear(config.sizes.units, action_size, outscale=0.01)
        self.stddev = Linear(config.sizes.units, action_size, outscale=0.01)

    def forward(self, features: Tensor) -> Normal:
        """(..., features) to a distribution over (..., A)."""
        x = self.mlp(features.to(self.dtype))
        stddev = (self.max_std - self.min_std) * torch.sigmoid(self.stddev(x) + 2.0) + self.min_std
        return Normal(torch.tanh(self.mean(x)), stddev)
