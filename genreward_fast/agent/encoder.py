"""The image encoder."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from genreward_fast.agent.config import NetworkSize
from genreward_fast.agent.nets import ChannelNorm, Conv, max_pool

MULTIPLIERS = (2, 3, 4, 4)
"""Channels of the four levels of encoder and decoder, in units of `NetworkSize.depth`."""


class Encoder(nn.Module):
    """Four times convolution, 2 x 2 max-pool, norm, SiLU: 64 x 64 pixels to tokens.

    Attributes:
        size: length of the tokens, 4 * 4 * 4 * depth.
    """

    def __init__(self, sizes: NetworkSize, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        channels = [3, *(sizes.depth * multiplier for multiplier in MULTIPLIERS)]
        self.convs = nn.ModuleList(Conv(a, b) for a, b in pairwise(channels))
        self.norms = nn.ModuleList(ChannelNorm(channel) for channel in channels[1:])
        self.size = 16 * channels[-1]

    def forward(self, image: Tensor) -> Tensor:
        """(..., 64, 64, 3) uint8 to (..., size) tokens in `dtype`, in the order height, width, channel."""
        x = image.reshape(-1, *image.shape[-3:]).permute(0, 3, 1, 2).to(self.dtype) / 255 - 0.5
        for conv, norm in zip(self.convs, self.norms):
            assert isinstance(norm, ChannelNorm)
            x = norm.silu(max_pool(conv(x)))
        return x.permute(0, 2, 3, 1).reshape(*image.shape[:-3], self.size)
