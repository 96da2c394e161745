"""Heads that read the features [deter, flattened one-hot stoch]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from genreward_fast.agent.config import AgentConfig
from genreward_fast.agent.dense import dense, linear
from genreward_fast.agent.distributions import Binary, Normal, TwoHot, symexp_bins
from genreward_fast.agent.nets import MLP, NORM_EPS, Dense, Linear
from genreward_fast.kernels.policy_loss import bounded_normal

Joined = tuple[Tensor, Tensor, Tensor]
"""Weight, bias and rounded bias of several layers as one."""


class Head(Protocol):
    """An MLP on the features, and output layers on that."""

    mlp: MLP

    def output(self, hidden: Tensor) -> Tensor:
        """(..., units) to the raw outputs (..., outputs)."""
        ...


class ScalarHead(nn.Module):
    """Reward or value: a two-hot distribution. Its output layer starts at zero, so that it first predicts exactly 0."""

    bins: Tensor
    zeros: Tensor  # rows that fill the output layer up to a multiple of 8

    def __init__(self, config: AgentConfig, layers: int) -> None:
        super().__init__()
        self.dtype = config.compute_dtype
        self.mlp = MLP(config.feature_size, config.sizes.units, layers)
        self.logits = Linear(config.sizes.units, config.bins, outscale=0.0)
        self.register_buffer("bins", symexp_bins(config.bins), persistent=False)
        zeros = torch.zeros(-config.bins % 8, config.sizes.units, dtype=self.dtype)
        self.register_buffer("zeros", zeros, persistent=False)

    def forward(self, features: Tensor) -> TwoHot:
        """(..., features) to a distribution over (...)."""
        return self.distribution(self.output(self.mlp(features.to(self.dtype))))

    def output(self, hidden: Tensor) -> Tensor:
        """(..., units) to what `distribution` takes."""
        return linear(hidden, *self.logits.casts(hidden.dtype), self.zeros)

    def distribution(self, logits: Tensor) -> TwoHot:
        """(..., bins or more) raw outputs to a distribution over (...)."""
        return TwoHot(logits, self.bins)


class ContinuationHead(nn.Module):
    """Whether the episode goes on."""

    def __init__(self, config: AgentConfig, layers: int = 1) -> None:
        super().__init__()
        self.dtype = config.compute_dtype
        self.mlp = MLP(config.feature_size, config.sizes.units, layers)
        self.logit = Linear(config.sizes.units, 1)

    def forward(self, features: Tensor) -> Binary:
        """(..., features) to a distribution over (...)."""
        return Binary(self.output(self.mlp(features.to(self.dtype))).squeeze(-1))

    def output(self, hidden: Tensor) -> Tensor:
        return self.logit(hidden)


class Actor(nn.Module):
    """The policy: a normal with its mean in (-1, 1) and its deviation in (min_std, max_std), not squashed further."""

    def __init__(self, config: AgentConfig, action_size: int, layers: int = 3) -> None:
        super().__init__()
        self.dtype, self.min_std, self.max_std = config.compute_dtype, config.min_std, config.max_std
        self.units = config.sizes.units
        self.mlp = MLP(config.feature_size, self.units, layers)
        self.mean = Linear(config.sizes.units, action_size, outscale=0.01)
        self.stddev = Linear(config.sizes.units, action_size, outscale=0.01)

    def forward(self, features: Tensor, joined: Joined | None = None) -> Normal:
        """(..., features) to a distribution over (..., A). `joined` saves joining the output layers in every call."""
        hidden = self.mlp(features.to(self.dtype))
        return Normal(*bounded_normal(self.output(hidden, joined), self.min_std, self.max_std))

    def joined(self) -> Joined:
        """Mean and deviation as one layer, as `linear` takes it."""
        return _joined([self.mean, self.stddev], self.dtype)

    def output(self, hidden: Tensor, joined: Joined | None = None) -> Tensor:
        """(..., units) to what `bounded_normal` reads, (..., 2 * A)."""
        return linear(hidden, *(joined or self.joined()))


def outputs(heads: Sequence[Head], features: Tensor) -> list[Tensor]:
    """The raw outputs (..., outputs) of several heads on the same features (..., features), which are in the dtype to
    compute in. The first layers, whose input is by far the widest, are one product, so that it is read once.
    """
    first = [cast(Dense, head.mlp[0]) for head in heads]
    weights = _joined([layer.linear for layer in first], features.dtype)
    scale = torch.stack([layer.norm.scale for layer in first])
    # In two dimensions a product reads its part of the joint hidden layer where it lies.
    joint = dense(features.flatten(0, -2), *weights, scale, NORM_EPS)
    results = []
    for head, hidden in zip(heads, joint.chunk(len(heads), -1)):
        for layer in list(head.mlp)[1:]:
            hidden = layer(hidden)
        results.append(head.output(hidden).unflatten(0, features.shape[:-1]))
    return results


def _joined(layers: Sequence[Linear], dtype: torch.dtype) -> Joined:
    """The layers' parameters, one after the other; weights and rounded biases in `dtype`."""
    weights, biases, copies = zip(*(layer.casts(dtype) for layer in layers))
    rounded = torch.cat(copies)
    return torch.cat(weights), torch.cat(biases) if torch.is_grad_enabled() else rounded, rounded
