"""The networks of the forward-backward representation: F(ψ(s), a, z), B(ψ(s′)), and the actor π(ψ(s), z).

Touati & Ollivier, "Learning One Representation to Optimize All Rewards" (2021), section 4; layer widths from GenReward.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

_SMALLEST_SQUARE = 1e-24  # of a vector that is scaled up to norm √d


class StackedLinear(nn.Module):
    """K independent linear layers of one shape, applied as one batched product.

    Weights are orthogonal, drawn from `generator`; biases are 0.
    """

    def __init__(self, heads: int, inputs: int, outputs: int, generator: torch.Generator):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(heads, outputs))
        for weight in self.weight:
            nn.init.orthogonal_(weight, generator=generator)

    def forward(self, inputs: Tensor) -> Tensor:
        """(K or 1, M, inputs) to (K, M, outputs)."""
        inputs = inputs.expand(self.weight.shape[0], -1, -1)
        return torch.baddbmm(self.bias.unsqueeze(1), inputs, self.weight.transpose(1, 2))


class StackedLayerNorm(nn.Module):
    """K independent layer norms over the last dimension."""

    def __init__(self, heads: int, size: int, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, size))
        self.bias = nn.Parameter(torch.zeros(heads, size))
        self.eps = eps

    def forward(self, inputs: Tensor) -> Tensor:
        """(K, M, size) to (K, M, size)."""
        normalised = functional.layer_norm(inputs, inputs.shape[-1:], eps=self.eps)
        return torch.addcmul(self.bias.unsqueeze(1), normalised, self.weight.unsqueeze(1))


class ForwardNet(nn.Module):
    """F_k(s, a, z), k = 1..K, each: [ψ(s), a, z] → Linear → LayerNorm → tanh → Linear → ReLU → Linear to d."""

    def __init__(
        self, feature_dim: int, action_size: int, z_dim: int, hidden: int, heads: int, generator: torch.Generator
    ):
        super().__init__()
        self.first = StackedLinear(heads, feature_dim + action_size + z_dim, hidden, generator)
        self.norm = StackedLayerNorm(heads, hidden)
        self.second = StackedLinear(heads, hidden, hidden, generator)
        self.last = StackedLinear(heads, hidden, z_dim, generator)

    def forward(self, feature: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """(M, D), (M, A), (M, d) to (K, M, d)."""
        inputs = torch.cat([feature, action, z], dim=-1).unsqueeze(0)
        hidden = torch.tanh(self.norm(self.first(inputs)))
        return self.last(torch.relu(self.second(hidden)))


class _Body(nn.Module):
    """inputs → Linear → LayerNorm → tanh → Linear → ReLU → Linear: what B and the actor are made of."""

    def __init__(self, inputs: int, outputs: int, hidden: int, generator: torch.Generator):
        super().__init__()
        # Without the layers' own initialisation, which draws from the global generator.
        self.first = nn.utils.skip_init(nn.Linear, inputs, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.second = nn.utils.skip_init(nn.Linear, hidden, hidden)
        self.last = nn.utils.skip_init(nn.Linear, hidden, outputs)
        for layer in (self.first, self.second, self.last):
            nn.init.orthogonal_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)

    def _output(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.first(inputs)))
        return self.last(torch.relu(self.second(hidden)))


class BackwardNet(_Body):
    """B(s′): ψ(s′) → Linear → LayerNorm → tanh → Linear → ReLU → Linear to d, scaled to norm √d."""

    def __init__(self, feature_dim: int, z_dim: int, hidden: int, generator: torch.Generator):
        super().__init__(feature_dim, z_dim, hidden, generator)

    def forward(self, feature: Tensor) -> Tensor:
        """(..., D) to (..., d), each of norm √d."""
        return scaled_to_sphere(self._output(feature))


class ActorNet(_Body):
    """π(s, z): [ψ(s), z] → Linear → LayerNorm → tanh → Linear → ReLU → Linear → tanh, a deterministic action."""

    def __init__(self, feature_dim: int, action_size: int, z_dim: int, hidden: int, generator: torch.Generator):
        super().__init__(feature_dim + z_dim, action_size, hidden, generator)

    def forward(self, feature: Tensor, z: Tensor) -> Tensor:
        """(M, D), (M, d) to (M, A) in (-1, 1)."""
        return torch.tanh(self._output(torch.cat([feature, z], dim=-1)))


def scaled_to_sphere(vectors: Tensor) -> Tensor:
    """(..., d) scaled to norm √d; zeros stay zeros."""
    if vectors.is_cuda:  # the same in one launch, and one back
        return functional.rms_norm(vectors, vectors.shape[-1:], eps=_SMALLEST_SQUARE)
    return functional.normalize(vectors, dim=-1) * math.sqrt(vectors.shape[-1])
