"""Convolutions of the image networks, as plain layers on (N, C, H, W) and between blocks of pixels.

A 5 x 5 convolution with stride 1 equals a 3 x 3 one between blocks of 2 x 2 pixels, whose channels hold the block: with
four times the channels it fills tensor cores, where the plain one leaves them empty. In this form maps are (N, H, W, C)
and the bias is left to the kernel that reads the result.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from genreward_fast.agent.narrow import norm_silu
from genreward_fast.agent.nets import NORM_EPS, Layer, RMSNorm, truncated_normal
from genreward_fast.kernels.phase_norm_silu import Mode, phase_norm_silu
from genreward_fast.kernels.phase_weights import phase_weights
from genreward_fast.kernels.rmsnorm_silu import rmsnorm_silu
from genreward_fast.kernels.triton_support import runs_triton

_SMALL = 2**16
"""Values of a map on a CPU that are normed by PyTorch's own operations."""
_CACHED = 2**18
"""Values that a part of the max-pool's gradient is made of, at most: half a megabyte of each of a few arrays."""


class Conv(Layer):
    """A 5 x 5 convolution with stride 1 that keeps the image's size, on (N, C, H, W) in channels-last memory."""

    scale = 1

    def __init__(self, inputs: int, outputs: int, kernel: int = 5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(outputs))

    def initialize(self, generator: torch.Generator) -> None:
        truncated_normal(self.weight, math.prod(self.weight.shape[1:]), 1.0, generator)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.cast("weight", x.dtype), self.cast("bias", x.dtype), padding="same")

    def in_pairs(self, x: Tensor) -> Tensor:
        """The same between pairs of neighbouring columns, for a 5 x 5 kernel and an even width.

        On channels-last memory the pairs are a view. With twice the channels the convolution takes 5 x 3 taps, a fifth
        of them 0; for the three channels of an image a CPU is a third faster so.
        """
        count, inputs, height, width = x.shape
        outputs = len(self.weight)
        weight = self.cast("weight", x.dtype)
        # Tap k (offset k - 2) of an output in column p of its pair reads column p + k - 2: column q of pair a - 1,
        # 2 a + q = p + k.
        taps = torch.stack([F.pad(weight, (0, 1)), F.pad(weight, (1, 0))]).unflatten(-1, (3, 2))
        taps = taps.permute(0, 1, 5, 2, 3, 4).reshape(2 * outputs, 2 * inputs, 5, 3)
        pairs = x.permute(0, 2, 3, 1).reshape(count, height, width // 2, 2 * inputs).permute(0, 3, 1, 2)
        y = F.conv2d(pairs, taps, self.cast("bias", x.dtype).repeat(2), padding="same").permute(0, 2, 3, 1)
        return y.reshape(count, height, width, outputs).permute(0, 3, 1, 2)

    def blocks(self, x: Tensor, side: int = 2, columns: int | None = None) -> Tensor:
        """The same without the bias: (N, H, W, blocks) to (N, H, W, blocks of side x side outputs).

        A block of inputs has side / `scale` pixels a side. Channels are (row in the block, column in the block,
        channel), of the inputs perhaps more, which count for nothing, and of the outputs zeros up to `columns`.
        """
        columns = columns or side**2 * len(self.weight)
        weight = phase_weights(self.weight, x.dtype, side, self.scale, columns, x.shape[-1])
        return F.conv2d(x.permute(0, 3, 1, 2), weight, padding=1).permute(0, 2, 3, 1)


class UpConv(Conv):
    """Nearest-neighbour doubling, then the convolution: (N, C, H, W) to (N, outputs, 2 H, 2 W).

    Computed without the doubled image. An output pixel of even or odd row sees its five rows of doubled pixels as three
    rows of the original, and so for columns: four convolutions, 3 x 3, whose weights are sums of the 5 x 5 ones.
    """

    scale = 2
    sums: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        # sums[p, a, k] = 1 where tap k (offset k - 2) of an output in phase p reads original row a - 1.
        sums = torch.tensor([[float((p + k) // 2 == a) for k in range(5)] for p in range(2) for a in range(3)])
        self.register_buffer("sums", sums.view(2, 3, 5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.phases(x).permute(0, 2, 3, 1)
        # Two neighbouring pixels of a row lie side by side in `y` as in the result.
        rows = y.unflatten(3, (2, -1)).transpose(2, 3)
        count, height, _, width, _ = rows.shape
        return rows.reshape(count, 2 * height, 2 * width, len(self.weight)).permute(0, 3, 1, 2)

    def phases(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, 4 * outputs, H, W), 2 x 2 blocks of pixels: the channels are (row, column, output)."""
        outputs, inputs = self.weight.shape[:2]
        weight = torch.einsum("oikl,pak,qbl->pqoiab", self.weight, self.sums, self.sums)
        weight = weight.reshape(4 * outputs, inputs, 3, 3).to(x.dtype)
        return F.conv2d(x, weight, self.bias.repeat(4).to(x.dtype), padding=1)


class ChannelNorm(RMSNorm):
    """RMS norm over the channels of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def silu(self, x: Tensor) -> Tensor:
        if runs_triton(x, self.scale):
            return rmsnorm_silu(x.permute(0, 2, 3, 1), self.scale, NORM_EPS).permute(0, 3, 1, 2)
        # The few images of an acting agent take less time than the calls of the longer way.
        if x.dtype == self.scale.dtype == torch.float32 and not x.is_cuda and x.numel() > _SMALL:
            return norm_silu(x.permute(0, 2, 3, 1), self.scale, NORM_EPS).permute(0, 3, 1, 2)
        return F.silu(self(x))

    def silu_of_blocks(self, x: Tensor, conv: Conv, mode: Mode, columns: int | None = None) -> Tensor:
        """SiLU of the norm, from what `conv.blocks` gives; see `phase_norm_silu`."""
        return phase_norm_silu(x, conv.bias, self.scale, NORM_EPS, mode, columns)


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = F.max_pool2d(x, 2)
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, y = ctx.saved_tensors
        n, channels, height, width = x.shape
        # On channels-last memory all of these are views. Two pixels side by side make one row of twice the channels,
        # so that rows are long and few operations pass over them.
        rows = x.permute(0, 2, 3, 1).reshape(n * height // 2, 2, width // 2, 2 * channels)
        highest, share = (v.permute(0, 2, 3, 1).reshape(len(rows), width // 2, channels) for v in (y, grad))
        result = torch.empty_like(rows)
        # A part at a time, which stays in the cache from one operation to the next.
        parts = [v.split(max(1, _CACHED // (width * channels))) for v in (rows, highest, share, result)]
        for row, top, by, out in zip(*parts):
            top = top.repeat(1, 1, 2)
            for line in (0, 1):
                torch.eq(row[:, line], top, out=out[:, line])
            ties = out[:, 0] + out[:, 1]
            by = (by / (ties[..., :channels] + ties[..., channels:])).repeat(1, 1, 2)
            for line in (0, 1):
                out[:, line] *= by
        return result.view(n, height, width, channels).permute(0, 3, 1, 2)


def max_pool(x: Tensor) -> Tensor:
    """The maximum over 2 x 2 pixels of (N, C, H, W).

    Unlike that of `max_pool2d`, the gradient is split evenly among pixels that tie, as in the reference: in the flat
    areas of a rendered image all four do.
    """
    return _MaxPool.apply(x)
