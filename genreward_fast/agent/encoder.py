"""The image encoder."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from genreward_fast.agent.config import NetworkSize
from genreward_fast.agent.convs import ChannelNorm, Conv, max_pool
from genreward_fast.agent.nets import NORM_EPS
from genreward_fast.kernels.image_blocks import image_blocks
from genreward_fast.kernels.image_level import MAX_CHANNELS, image_level
from genreward_fast.kernels.triton_support import runs_triton

MULTIPLIERS = (2, 3, 4, 4)
"""Channels of the four levels of encoder and decoder, in units of `NetworkSize.depth`."""
IMAGE_COLUMNS = 32
"""Channels of a 2 x 2 block of pixels, 12 of them filled: cuDNN's convolutions are fastest from this number."""


class Encoder(nn.Module):
    """Four times convolution, 2 x 2 max-pool, norm, SiLU: 64 x 64 pixels to tokens.

    Attributes:
        first: channels of the first level.
        size: length of the tokens, 4 * 4 * 4 * depth.
    """

    def __init__(self, sizes: NetworkSize, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        channels = [3, *(sizes.depth * multiplier for multiplier in MULTIPLIERS)]
        self.convs = nn.ModuleList(Conv(a, b) for a, b in pairwise(channels))
        self.norms = nn.ModuleList(ChannelNorm(channel) for channel in channels[1:])
        self.first, self.size = channels[1], 16 * channels[-1]

    def forward(self, image: Tensor) -> Tensor:
        """(..., 64, 64, 3) uint8 to (..., size) tokens in `dtype`, in the order height, width, channel."""
        fused = self.dtype != torch.float64 and runs_triton(image)
        x = self._in_blocks(image) if fused else self._plainly(image)
        return x.reshape(*image.shape[:-3], self.size)

    def _in_blocks(self, image: Tensor) -> Tensor:
        """(N, 4, 4, channels), with few kernels over wide channels."""
        x, last = None, len(self.convs) - 1
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            assert isinstance(conv, Conv)
            assert isinstance(norm, ChannelNorm)
            if i == 0 and self.first <= MAX_CHANNELS:
                x = image_level(image, conv.weight, conv.bias, norm.scale, NORM_EPS, self.dtype)
                continue
            x = image_blocks(image, self.dtype, IMAGE_COLUMNS) if x is None else x
            x = norm.silu_of_blocks(conv.blocks(x), conv, "pool" if i == last else "pool_blocks")
        assert x is not None
        return x

    def _plainly(self, image: Tensor) -> Tensor:
        """The same in plain PyTorch; it works best on a CPU."""
        x = image.reshape(-1, *image.shape[-3:]).permute(0, 3, 1, 2).to(self.dtype).div_(255).sub_(0.5)
        # For the few images of an acting agent the paired weight costs more than it saves.
        paired = torch.is_grad_enabled() and not x.is_cuda
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            assert isinstance(conv, Conv)
            assert isinstance(norm, ChannelNorm)
            x = norm.silu(max_pool(conv.in_pairs(x) if paired and i == 0 else conv(x)))
        return x.permute(0, 2, 3, 1)
