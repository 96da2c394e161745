"""Pre-norm transformer blocks that add to one stream in place, in as few launches as their products allow.

A block is nine launches: norm, queries with keys and values, rotation, attention, output, norm, up, activation, down;
of many rows in half precision, up and activation are one. Layer scales are folded into the products. Products that add
to the stream leave their biases out: these are the same for every token, so the stream holds x minus their sum so far,
which each norm adds when it reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from genreward_fast.kernels.activated_linear import activated_linear
from genreward_fast.kernels.gated_silu import gated_silu
from genreward_fast.kernels.layer_norm import layer_norm
from genreward_fast.kernels.rope import rope
from genreward_fast.kernels.triton_support import runs_triton

FUSED_ROWS: dict[str, int | None] = {"gated": 2048, "plain": None}
"""From so many rows on, the activation is part of the product before it: fewer do not fill a GPU with its tiles. With
None it never is: GELU alone is a pass so short that cuBLAS with it is faster (`benchmarks/encoders/vit_paths.py`)."""

Rotation = tuple[Tensor, Tensor]
"""Cosine and sine (P, head size / 2) of the angles of the last P tokens."""


@dataclass(frozen=True)
class Linear:
    """A linear layer's tensors.

    Attributes:
        weight: (outputs, inputs) float32.
        bias: (outputs,) float32.
    """

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, layer: Any, scale: Tensor | None = None) -> Self:
        """An `nn.Linear` with or without bias, whose outputs are multiplied by `scale` (outputs,)."""
        weight = layer.weight.detach().float()
        bias = torch.zeros_like(weight[:, 0]) if layer.bias is None else layer.bias.detach().float()
        if scale is not None:
            weight, bias = weight * scale.detach().float()[:, None], bias * scale.detach().float()
        return cls(weight, bias)

    @classmethod
    def joined(cls, parts: Iterable[Linear]) -> Self:
        """One layer that gives the outputs of all, side by side."""
        parts = list(parts)
        return cls(torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts]))


@dataclass(frozen=True)
class Layer:
    """A block as its library has it, layer scales folded into `output` and `down`.

    Attributes:
        qkv: queries, keys and values.
        up: with `gated`, the gate's and the up projection.
        gated: whether the activation is silu(gate) · up; else it is gelu (exact).
    """

    norm1: nn.LayerNorm
    qkv: Linear
    output: Linear
    norm2: nn.LayerNorm
    up: Linear
    down: Linear
    gated: bool


def _constant(value: Tensor) -> Tensor:
    """A buffer that is no part of a state: it is made from weights that are."""
    return nn.Buffer(value.detach().clone(), persistent=False)


class Norm(nn.Module):
    """Layer norm of the stream."""

    def __init__(self, norm: nn.LayerNorm, shift: Tensor) -> None:
        """
        Args:
            shift: (C,) float32, what the stream leaves out.
        """
        super().__init__()
        self.weight, self.bias = _constant(norm.weight.float()), _constant(norm.bias.float())
        self.shift = _constant(shift)
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps, self.shift)


class Product(nn.Module):
    """A linear layer of rows."""

    def __init__(self, linear: Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.bias = _constant(linear.weight.to(dtype)), _constant(linear.bias.to(dtype))

    def forward(self, x: Tensor, begin: int = 0, end: int | None = None) -> Tensor:
        """(N, inputs) to outputs `begin` … `end` of each row."""
        return torch.addmm(self.bias[begin:end], x, self.weight[begin:end].t())

    def add_to(self, stream: Tensor, x: Tensor) -> None:
        """Adds the outputs for x (N, inputs), without the bias, to the stream (N, outputs)."""
        torch.addmm(stream, x, self.weight.t(), out=stream)


class Block(nn.Module):
    """Attention and a feed-forward layer, both added to the stream."""

    def __init__(self, layer: Layer, shift: Tensor, heads: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(layer.norm1, shift), Norm(layer.norm2, shift + layer.output.bias)
        self.qkv, self.output = Product(layer.qkv, dtype), Product(layer.output, dtype)
        self.up, self.down = Product(layer.up, dtype), Product(layer.down, dtype)
        self.gated, self.heads = layer.gated, heads

    def forward(self, stream: Tensor, rotation: Rotation | None = None, causal: bool = False) -> None:
        """Changes the stream (B, N, C), which is contiguous.

        Args:
            causal: a token attends to none that follow it.
        """
        images, tokens, width = stream.shape
        rows = stream.view(-1, width)
        qkv = self.qkv(self.norm1(rows)).view(images, tokens, 3, self.heads, -1)
        if rotation is not None:
            rope(qkv, *rotation)
        query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))
        read = functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
        self.output.add_to(rows, read.transpose(1, 2).reshape(-1, width))
        self._feed_forward(rows)

    def first_token(self, stream: Tensor, rotation: Rotation | None = None) -> Tensor:
        """The same for the first token alone, which is not rotated: a part of the stream, (B, C)."""
        images, tokens, width = stream.shape
        normed = self.norm1(stream.view(-1, width))
        kv = self.qkv(normed, width).view(images, tokens, 2, self.heads, -1)
        if rotation is not None:
            rope(kv, *rotation)
        query = self.qkv(normed.view(stream.shape)[:, 0], 0, width).view(images, 1, self.heads, -1).transpose(1, 2)
        key, value = (part.transpose(1, 2) for part in kv.unbind(2))
        read = functional.scaled_dot_product_attention(query, key, value)
        first = stream[:, 0]
        self.output.add_to(first, read.reshape(-1, width))
        self._feed_forward(first)
        return first

    def _feed_forward(self, rows: Tensor) -> None:
        normed = self.norm2(rows)
        if _fuses(normed, self.gated):
            activated = activated_linear(normed, self.up.weight, self.up.bias, gated=self.gated)
        else:
            hidden = self.up(normed)
            activated = gated_silu(hidden) if self.gated else functional.gelu(hidden)
        self.down.add_to(rows, activated)


def _fuses(rows: Tensor, gated: bool) -> bool:
    """Whether these (N, C) go through a product and its activation in one launch."""
    least = FUSED_ROWS["gated" if gated else "plain"]
    half = rows.dtype in (torch.bfloat16, torch.float16)
    return half and least is not None and runs_triton(rows) and len(rows) >= least


class Blocks(nn.ModuleList):
    """Blocks one after the other.

    Attributes:
        shift: (C,) float32, what the stream leaves out after the last one.
    """

    def __init__(self, layers: Iterable[Layer], shift: Tensor, heads: int, dtype: torch.dtype) -> None:
        """
        Args:
            shift: what it leaves out before the first one.
        """
        super().__init__()
        for layer in layers:
            self.append(Block(layer, shift, heads, dtype))
            shift = shift + layer.output.bias + layer.down.bias
        self.shift = _constant(shift)

    def first_token(self, stream: Tensor, rotation: Rotation | None = None) -> Tensor:
        """Changes the stream (B, N, C), which is contiguous; gives what is then in the first token's place, (B, C).

        Of the last block all else is left out.
        """
        blocks: list[Any] = list(self)  # modules, to type checkers
        for block in blocks[:-1]:
            block(stream, rotation)
        return blocks[-1].first_token(stream, rotation)


class Patches(nn.Module):
    """Pictures to a stream: tokens that are the same for every picture, and a linear map of each patch."""

    def __init__(self, conv: nn.Conv2d, tokens: Tensor, dtype: torch.dtype) -> None:
        """
        Args:
            conv: with kernel and stride of a patch's side; its bias is not read.
            tokens: (N, C) float32, what is added to the patches' maps, which are the last; the others stand for
                themselves.
        """
        super().__init__()
        self.side = conv.kernel_size[0]
        # Rows of a patch, pixels, colours: as they lie in memory.
        self.weight = _constant(conv.weight.detach().permute(2, 3, 1, 0).flatten(0, 2).to(dtype))
        self.tokens = _constant(tokens.to(dtype))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W), fastest where channels are last, to (B, N, C)."""
        side = self.side
        parts = pixels.permute(0, 2, 3, 1).unflatten(2, (-1, side)).unflatten(1, (-1, side))
        rows = parts.transpose(2, 3).flatten(3).flatten(1, 2)
        stream = self.tokens.repeat(len(pixels), 1, 1)
        patches = stream[:, stream.shape[1] - rows.shape[1] :]
        torch.baddbmm(patches, rows, self.weight.expand(len(pixels), -1, -1), out=patches)
        return stream
