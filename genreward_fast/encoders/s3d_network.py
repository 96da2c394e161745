"""S3D-G with a text tower, as trained on HowTo100M (MIL-NCE, arXiv 1912.06430; S3D-G: arXiv 1712.04851).

Parameters have the names of the published checkpoint `s3d_howto100m.pth`, which is loaded tensor for tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

# Channels of each inception block's branches: 1×1×1; 1×1×1, 3×3×3; 1×1×1, 3×3×3; 1×1×1 behind the pooling.
Channels = tuple[int, int, int, int, int, int]
STAGE_3: dict[str, Channels] = {
    "mixed_3b": (64, 96, 128, 16, 32, 32),
    "mixed_3c": (128, 128, 192, 32, 96, 64),
}
STAGE_4: dict[str, Channels] = {
    "mixed_4b": (192, 96, 208, 16, 48, 64),
    "mixed_4c": (160, 112, 224, 24, 64, 64),
    "mixed_4d": (128, 128, 256, 24, 64, 64),
    "mixed_4e": (112, 144, 288, 32, 64, 64),
    "mixed_4f": (256, 160, 320, 32, 128, 128),
}
STAGE_5: dict[str, Channels] = {
    "mixed_5b": (256, 160, 320, 32, 128, 128),
    "mixed_5c": (384, 192, 384, 48, 128, 128),
}
MAX_WORDS = 16


class ConvNorm(nn.Module):
    """A convolution with batch norm and ReLU; `separable`: over space, then over time, each with both."""

    def __init__(
        self, inner: int, outer: int, kernel: tuple[int, int, int], padding: tuple[int, int, int], separable: bool
    ) -> None:
        super().__init__()
        time, height, width = kernel
        in_space = (1, height, width) if separable else kernel
        self.conv1 = nn.Conv3d(inner, outer, in_space, padding=(0, *padding[1:]) if separable else padding, bias=False)
        self.bn1 = nn.BatchNorm3d(outer)
        self.separable = separable
        if separable:
            self.conv2 = nn.Conv3d(outer, outer, (time, 1, 1), padding=(padding[0], 0, 0), bias=False)
            self.bn2 = nn.BatchNorm3d(outer)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(x))) if self.separable else x


def pointwise(inner: int, outer: int) -> ConvNorm:
    return ConvNorm(inner, outer, (1, 1, 1), (0, 0, 0), separable=False)


def separable(inner: int, outer: int) -> ConvNorm:
    return ConvNorm(inner, outer, (3, 3, 3), (1, 1, 1), separable=True)


class SelfGating(nn.Module):
    """Each channel times a sigmoid of a linear map of all channels' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean(dim=(2, 3, 4))).sigmoid()[:, :, None, None, None]


class InceptionBlock(nn.Module):
    """Four branches side by side, each gated."""

    def __init__(self, inner: int, channels: Channels) -> None:
        super().__init__()
        outer_0, inner_1, outer_1, inner_2, outer_2, outer_3 = channels
        self.conv_b0 = pointwise(inner, outer_0)
        self.conv_b1_a, self.conv_b1_b = pointwise(inner, inner_1), separable(inner_1, outer_1)
        self.conv_b2_a, self.conv_b2_b = pointwise(inner, inner_2), separable(inner_2, outer_2)
        self.conv_b3_b = pointwise(inner, outer_3)
        self.gating_b0, self.gating_b1 = SelfGating(outer_0), SelfGating(outer_1)
        self.gating_b2, self.gating_b3 = SelfGating(outer_2), SelfGating(outer_3)

    def forward(self, x: Tensor) -> Tensor:
        pooled = functional.max_pool3d(x, 3, stride=1, padding=1)
        branches = [
            self.gating_b0(self.conv_b0(x)),
            self.gating_b1(self.conv_b1_b(self.conv_b1_a(x))),
            self.gating_b2(self.conv_b2_b(self.conv_b2_a(x))),
            self.gating_b3(self.conv_b3_b(pooled)),
        ]
        return torch.cat(branches, dim=1)


class TextTower(nn.Module):
    """Word vectors through a layer each, their maximum, and a linear map."""

    def __init__(self, words: int, word_dim: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.word_embd = nn.Embedding(words, word_dim)
        self.fc1 = nn.Linear(word_dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, MAX_WORDS) int64, 0 where there is no word, to (N, dim). The 0s take part, as in training."""
        return self.fc2(functional.relu(self.fc1(self.word_embd(tokens))).amax(dim=1))


def same_pool(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Max-pooling with TensorFlow's padding: `kernel − stride` zeros, the larger half behind."""
    padding = []
    for k, s in reversed(list(zip(kernel, stride))):
        before = (k - s) // 2
        padding += [before, k - s - before]
    return functional.max_pool3d(functional.pad(x, padding), kernel, stride, ceil_mode=True)


class TextVideoS3D(nn.Module):
    """Clips and sentences into one space, in which the product of two is their likeness."""

    def __init__(self, dim: int = 512, words: int = 66_250, word_dim: int = 300, text_hidden: int = 2048) -> None:
        """
        Args:
            dim: of the shared space.
            words: rows of the table of word vectors: the vocabulary and the empty word 0.
        """
        super().__init__()
        self.conv1 = ConvNorm(24, 64, (2, 4, 4), (1, 2, 2), separable=False)
        self.conv_2b = pointwise(64, 64)
        self.conv_2c = separable(64, 192)
        self.gating = SelfGating(192)
        channels = 192
        for name, widths in (STAGE_3 | STAGE_4 | STAGE_5).items():
            self.add_module(name, InceptionBlock(channels, widths))
            channels = widths[0] + widths[2] + widths[4] + widths[5]
        self.fc = nn.Linear(channels, dim)
        self.text_module = TextTower(words, word_dim, text_hidden, dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, K, H, W), all three even, to (B, dim)."""
        x = self.conv1(space_to_depth(pixels))[
            :, :, 1:, 1:, 1:
        ]  # TensorFlow pads an even kernel less before than behind
        x = same_pool(x, (1, 3, 3), (1, 2, 2))
        x = self.gating(self.conv_2c(self.conv_2b(x)))
        x = self._stage(same_pool(x, (1, 3, 3), (1, 2, 2)), STAGE_3)
        x = self._stage(same_pool(x, (3, 3, 3), (2, 2, 2)), STAGE_4)
        x = self._stage(same_pool(x, (2, 2, 2), (2, 2, 2)), STAGE_5)
        return self.fc(x.mean(dim=(2, 3, 4)))

    def _stage(self, x: Tensor, blocks: dict[str, Channels]) -> Tensor:
        for name in blocks:
            x = self.get_submodule(name)(x)
        return x


def space_to_depth(pixels: Tensor) -> Tensor:
    """(B, 3, K, H, W) to (B, 24, K/2, H/2, W/2): the eight pixels of each 2×2×2 block, time first, then colours."""
    batch, colours, time, height, width = pixels.shape
    blocks = pixels.view(batch, colours, time // 2, 2, height // 2, 2, width // 2, 2)
    return blocks.permute(0, 3, 5, 7, 1, 2, 4, 6).reshape(batch, 8 * colours, time // 2, height // 2, width // 2)
