"""Layers of DreamerV3. Each computes in the dtype of its input; parameters stay float32, or float64.

Order everywhere: linear or convolution, (max-pool), RMS norm, SiLU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genreward_fast.agent.dense import dense, linear
from genreward_fast.kernels.rmsnorm_silu import rmsnorm_silu
from genreward_fast.kernels.rssm_tiles import NORM_EPS as NORM_EPS
from genreward_fast.kernels.triton_support import runs_triton, wide


def truncated_normal(weight: Tensor, fan_in: int, outscale: float, generator: torch.Generator) -> None:
    """Fills `weight` with a normal cut at two deviations; 1.1368 restores the variance that the cut takes away.

    The numbers are drawn in float32, so that they are the same ones for a weight in float64.
    """
    with torch.no_grad():
        if outscale == 0:
            weight.zero_()
        else:
            drawn = torch.empty_like(weight, dtype=torch.float32)
            nn.init.trunc_normal_(drawn, std=1.0, a=-2.0, b=2.0, generator=generator)
            weight.copy_(drawn.mul_(1.1368 * math.sqrt(1 / fan_in) * outscale))


class Layer(nn.Module):
    """A layer with parameters that `initialize` fills; until then they hold anything.

    Attributes:
        copies: by a parameter's name, what gives its copy in the dtype that the networks compute in (`flat.Casts`);
            empty where nobody keeps such copies.
    """

    copies: Mapping[str, Callable[[], Tensor]] = MappingProxyType({})

    def initialize(self, generator: torch.Generator) -> None:
        raise NotImplementedError

    def cast(self, name: str, dtype: torch.dtype) -> Tensor:
        """The parameter `name` in `dtype`, with gradients, and rounded anew only where no copy is kept."""
        parameter: Tensor = getattr(self, name)
        if parameter.dtype == dtype or name not in self.copies:
            return parameter.to(dtype)
        return self.copies[name]().to(dtype)


def initialize(module: nn.Module, generator: torch.Generator) -> None:
    """Fills the parameters of all layers inside `module`, in their order, from a generator on the same device."""
    for part in module.modules():
        if isinstance(part, Layer):
            part.initialize(generator)


class Linear(Layer):
    """y = x W^T + b on (..., inputs) to (..., outputs); `outscale` multiplies the initial weights."""

    def __init__(self, inputs: int, outputs: int, outscale: float = 1.0) -> None:
        super().__init__()
        self.outscale = outscale
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    def initialize(self, generator: torch.Generator) -> None:
        truncated_normal(self.weight, self.weight.shape[1], self.outscale, generator)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        if runs_triton(x, self.bias):
            return linear(x, *self.casts(x.dtype))
        return F.linear(x, self.cast("weight", x.dtype), self.cast("bias", x.dtype))

    def casts(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """What `linear` takes: the weight in `dtype`, the bias itself, and a copy in `dtype` without gradients."""
        with torch.no_grad():
            rounded = self.cast("bias", dtype)
        return self.cast("weight", dtype), self.bias, rounded


class BlockLinear(Layer):
    """A linear layer with a block-diagonal weight: piece k of the input gives piece k of the output.

    `weight` is (blocks, inputs / blocks, outputs / blocks). Its initial scale counts all inputs, not those of a block.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.inputs, self.blocks = inputs, blocks
        self.weight = nn.Parameter(torch.empty(blocks, inputs // blocks, outputs // blocks))
        self.bias = nn.Parameter(torch.empty(outputs))

    def initialize(self, generator: torch.Generator) -> None:
        truncated_normal(self.weight, self.inputs, 1.0, generator)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs) to (N, outputs)."""
        return block_matmul(x, self.cast("weight", x.dtype)) + self.cast("bias", x.dtype)


def block_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """(N, blocks * i) times (blocks, i, o), block by block, joined to (N, blocks * o)."""
    blocks = weight.shape[0]
    pieces = x.view(x.shape[0], blocks, -1).transpose(0, 1)
    return torch.bmm(pieces, weight).transpose(0, 1).reshape(x.shape[0], -1)


class RMSNorm(Layer):
    """x / sqrt(mean(x²) + 1e-4) * scale over the last axis, in float32 inside."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(size))

    def initialize(self, generator: torch.Generator) -> None:
        nn.init.ones_(self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(wide(x), self.scale.shape, self.scale, NORM_EPS).to(x.dtype)

    def silu(self, x: Tensor) -> Tensor:
        """SiLU of the norm; on CUDA in one pass over memory."""
        if runs_triton(x, self.scale):
            return rmsnorm_silu(x, self.scale, NORM_EPS)
        return F.silu(self(x))


class Dense(nn.Module):
    """Linear, RMS norm, SiLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = Linear(inputs, outputs)
        self.norm = RMSNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        if runs_triton(x, self.linear.bias):
            return dense(x, *self.linear.casts(x.dtype), self.norm.scale, NORM_EPS)
        return self.norm.silu(self.linear(x))


class MLP(nn.Sequential):
    """`layers` times `Dense`, each `units` wide."""

    def __init__(self, inputs: int, units: int, layers: int) -> None:
        super().__init__(*(Dense(units if i else inputs, units) for i in range(layers)))
