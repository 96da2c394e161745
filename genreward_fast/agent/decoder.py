"""The image decoder."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genreward_fast.agent.config import NetworkSize
from genreward_fast.agent.convs import ChannelNorm, UpConv
from genreward_fast.agent.encoder import MULTIPLIERS
from genreward_fast.agent.losses import image_loss
from genreward_fast.agent.narrow import image_error
from genreward_fast.agent.nets import NORM_EPS, BlockLinear, Dense, Linear
from genreward_fast.kernels.phase_image_loss import phase_image_loss, phase_pixels
from genreward_fast.kernels.space_norm_silu import space_norm_silu
from genreward_fast.kernels.triton_support import runs_triton

IMAGE_SIDE = 4
"""Side of the blocks of pixels that the last convolution makes, each from a block half as wide."""


def _wide(channels: int) -> int:
    """Channels to make of these, the added ones 0: a multiple of 64 is worth a third more to the convolutions."""
    wide = -(-channels // 64) * 64
    return wide if 3 * wide <= 4 * channels else channels


class Decoder(nn.Module):
    """Recurrent state to pixels: a 4 x 4 map, then four times nearest-neighbour doubling and convolution."""

    def __init__(self, sizes: NetworkSize, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.blocks = dtype, sizes.blocks
        channels = [sizes.depth * multiplier for multiplier in MULTIPLIERS]
        space = 16 * channels[-1]
        self.from_deter = BlockLinear(sizes.deter, space, sizes.blocks)
        self.from_stoch = Dense(sizes.stoch * sizes.classes, 2 * sizes.units)
        self.stoch_to_space = Linear(2 * sizes.units, space)
        self.space_norm = ChannelNorm(channels[-1])
        channels.reverse()
        self.convs = nn.ModuleList(UpConv(a, b) for a, b in pairwise(channels))
        self.norms = nn.ModuleList(ChannelNorm(channel) for channel in channels[1:])
        self.image = UpConv(channels[-1], 3)

    def forward(self, deter: Tensor, stoch: Tensor) -> Tensor:
        """(..., deter) and one-hot (..., stoch, classes) to (..., 64, 64, 3) pixels in [0, 1], in `dtype`."""
        x = self._start(deter, stoch)
        pixels = phase_pixels(self._in_blocks(x), self.image.bias, IMAGE_SIDE) if runs_triton(x) else self._plainly(x)
        return pixels.reshape(*deter.shape[:-1], *pixels.shape[1:])

    def loss(self, deter: Tensor, stoch: Tensor, image: Tensor) -> Tensor:
        """`image_loss` of the decoded pixels and (..., 64, 64, 3) uint8: (...) float32."""
        if not runs_triton(deter, stoch, image):
            if self.dtype != torch.float32 or image.is_cuda:
                return image_loss(self(deter, stoch), image)
            return image_error(self.image.phases(self._maps(self._start(deter, stoch))), image).view(deter.shape[:-1])
        x = self._in_blocks(self._start(deter, stoch))
        return phase_image_loss(x, self.image.bias, image, IMAGE_SIDE).view(deter.shape[:-1])

    def _start(self, deter: Tensor, stoch: Tensor) -> Tensor:
        """(N, 4, 4, channels)."""
        deter = deter.reshape(-1, deter.shape[-1]).to(self.dtype)
        stoch = stoch.reshape(deter.shape[0], -1).to(self.dtype)
        if runs_triton(deter):
            return self._start_fused(deter, self.from_stoch(stoch))
        # Each block of the deterministic state paints its own group of channels over the whole 4 x 4 map.
        x = self.from_deter(deter).view(len(deter), self.blocks, 4, 4, -1).permute(0, 2, 3, 1, 4).flatten(3)
        x = x + self.stoch_to_space(self.from_stoch(stoch)).view(x.shape)
        return self.space_norm.silu(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def _start_fused(self, deter: Tensor, hidden: Tensor) -> Tensor:
        """The same with the layers' biases, their sum, norm and SiLU in one kernel."""
        weight = self.from_deter.cast("weight", self.dtype)
        pieces = torch.bmm(deter.view(len(deter), self.blocks, -1).transpose(0, 1), weight)
        x = space_norm_silu(
            pieces,
            self.from_deter.bias,
            F.linear(hidden, self.stoch_to_space.cast("weight", self.dtype)),
            self.stoch_to_space.bias,
            self.space_norm.scale,
            NORM_EPS,
        )
        return x.view(len(deter), 4, 4, -1)

    def _plainly(self, x: Tensor) -> Tensor:
        """(N, 4, 4, channels) to (N, 64, 64, 3) pixels in plain PyTorch; it works best on a CPU."""
        return self.image(self._maps(x)).sigmoid().permute(0, 2, 3, 1)

    def _maps(self, x: Tensor) -> Tensor:
        """(N, 4, 4, channels) to (N, channels, 32, 32), what the last convolution reads, in plain PyTorch."""
        x = x.permute(0, 3, 1, 2)
        for conv, norm in zip(self.convs, self.norms):
            assert isinstance(norm, ChannelNorm)
            x = norm.silu(conv(x))
        return x

    def _in_blocks(self, x: Tensor) -> Tensor:
        """(N, 4, 4, channels) to (N, 16, 16, blocks of 4 x 4 x 3, then zeros), before the last bias and sigmoid."""
        last = len(self.convs) - 1
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            assert isinstance(conv, UpConv)
            assert isinstance(norm, ChannelNorm)
            if i < last:
                x = norm.silu_of_blocks(conv.blocks(x), conv, "shuffle", _wide(len(norm.scale)))
            else:  # four phases of a pixel are what the last convolution reads as a block
                x = norm.silu_of_blocks(conv.blocks(x), conv, "keep")
        return self.image.blocks(x, IMAGE_SIDE, _wide(3 * IMAGE_SIDE**2))
