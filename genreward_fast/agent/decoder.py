"""The image decoder."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from genreward_fast.agent.config import NetworkSize
from genreward_fast.agent.encoder import MULTIPLIERS
from genreward_fast.agent.nets import BlockLinear, ChannelNorm, Dense, Linear, UpConv


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
        batch = deter.shape[:-1]
        deter = deter.reshape(-1, deter.shape[-1]).to(self.dtype)
        stoch = stoch.reshape(deter.shape[0], -1).to(self.dtype)
        # Each block of the deterministic state paints its own group of channels over the whole 4 x 4 map.
        x = self.from_deter(deter).view(len(deter), self.blocks, 4, 4, -1).permute(0, 2, 3, 1, 4).flatten(3)
        x = x + self.stoch_to_space(self.from_stoch(stoch)).view(x.shape)
        x = self.space_norm.silu(x.permute(0, 3, 1, 2))
        for conv, norm in zip(self.convs, self.norms):
            assert isinstance(norm, ChannelNorm)
            x = norm.silu(conv(x))
        x = self.image(x).sigmoid()
        return x.permute(0, 2, 3, 1).reshape(*batch, *x.shape[2:], 3)
