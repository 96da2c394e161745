"""The encoder half of CogVideoX's causal video autoencoder (arXiv 2408.06072), as one pass over all frames of a clip.

The weights' names are those of the library's `CogVideoXEncoder3D`. The library runs the encoder over chunks of eight
frames, one after another, and hands the last two inputs of every convolution on to the next chunk. A causal convolution
over all frames at once sees the same frames; what a chunk changes is that group norms know no frames but its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor, nn
from torch.nn import functional

from genreward_fast.errors import UserError
from genreward_fast.kernels.frame_conv import frame_conv, scaled
from genreward_fast.kernels.group_norm_silu import FLOAT8_FACTOR, group_norm_silu
from genreward_fast.kernels.moments import FLOAT8, Moments
from genreward_fast.kernels.shifted_conv import float8_weight, shifted_conv
from genreward_fast.kernels.time_pool import time_pool
from genreward_fast.kernels.triton_support import runs_triton

CHUNK = 8  # frames that the library encodes at once
OUT_EPS = 1e-6  # of the last norm, whatever the configuration says


def chunk_lengths(length: int) -> list[int]:
    """How many frames of a clip share a norm's statistics: eight each, and the first chunk what is over as well."""
    if length < CHUNK:
        return [length]
    return [CHUNK + length % CHUNK] + [CHUNK] * (length // CHUNK - 1)


@dataclass
class Sum:
    """A map that is added up by its only reader: value + bias + residual.

    Attributes:
        value, residual: (B, T, H, W, C).
        bias: (C,).
        moments: of the value's chunks, where they are known; then there is nothing to add.
    """

    value: Tensor
    bias: Tensor | None = None
    residual: Tensor | None = None
    moments: Moments | None = None

    def take(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The three, which are forgotten here: gigabytes are free as soon as they have been read."""
        terms = self.value, self.bias, self.residual
        del self.value, self.bias, self.residual
        return terms


class CausalConv(nn.Module):
    """A 3 x 3 x 3 convolution over a frame and the two before it.

    Attributes:
        float8: whether products are of float8 numbers, see `use_float8`.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv: Any = nn.Conv3d(inputs, outputs, 3)  # to type checkers its bias may be None
        self.float8 = False

    def use_float8(self) -> None:
        """Makes products of float8 numbers (e4m3) from now on: what comes in must be such ones, and padded."""
        rows, factor = float8_weight(self.conv.weight.detach(), FLOAT8_FACTOR)
        # As bytes, which keep their type when the module changes its own.
        self.register_buffer("_rows", rows.view(torch.uint8), persistent=False)
        self.register_buffer("_factor", factor, persistent=False)
        self.float8 = True

    def of_float8(self, x: Tensor, chunks: Sequence[int], residual: Tensor | None) -> Sum:
        """(B, T + 2, H + 2, W + 2, C) float8, the first frame three times, to (B, T, H, W, outputs), all added up."""
        rows, factor = self.get_buffer("_rows").view(FLOAT8), self.get_buffer("_factor").float()
        bias = self.conv.bias
        y, moments = shifted_conv(x, rows, bias, chunks, factor=factor, residual=residual, dtype=bias.dtype)
        return Sum(y, moments=moments)

    def of_frames(self, frames: Tensor, chunks: Sequence[int]) -> Sum:
        """(B, T, H, W, 3) uint8 to (B, T, H, W, outputs)."""
        y, moments = frame_conv(frames, self.conv.weight, self.conv.bias, chunks)
        return Sum(y, moments=moments)

    def forward(self, x: Tensor, *, padding: int = 1, outputs: int | None = None) -> Sum:
        """(B, T + 2, H, W, C), the first frame three times, or (B, 1, H, W, C) to (B, T, H, W, `outputs`).

        Args:
            padding: rows and columns of zeros that x lacks on every side.
            outputs: compute the first ones only.
        """
        weight = self.conv.weight[:outputs]
        added, left = _bias(x, self.conv.bias[:outputs])
        if x.shape[1] == 1:
            # A frame alone stands for the two before it as well.
            flat = weight.sum(2, dtype=torch.float32).to(x.dtype)
            y = functional.conv2d(x[:, 0].permute(0, 3, 1, 2), flat, added, padding=padding).unsqueeze(2)
        else:
            y = _conv3d(x.permute(0, 4, 1, 2, 3), weight, added, (0, padding, padding))
        return Sum(y.permute(0, 2, 3, 4, 1), left)


class GroupNormSiLU(nn.Module):
    """Group norm of every chunk, and SiLU."""

    def __init__(self, groups: int, channels: int, eps: float) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(
        self,
        x: Sum,
        chunks: Sequence[int],
        conv: CausalConv,
        *,
        keep: bool = False,
        outputs: int | None = None,
        added: Tensor | None = None,
    ) -> tuple[Sum, Tensor | None]:
        """The convolution of the activation, to which `added` is added, and the sum x if it is to be kept."""
        moments = x.moments
        value, shift, residual = x.take()
        fused = conv.float8 or runs_triton(value)  # elsewhere the convolution pads for nothing
        y, total = group_norm_silu(
            value,
            self.weight,
            self.bias,
            self.groups,
            self.eps,
            chunks,
            shift=shift,
            residual=residual,
            before=2 if conv.float8 or sum(chunks) > 1 else 0,
            around=int(fused),
            keep=keep,
            moments=moments,
            float8=conv.float8,
        )
        del value, residual
        if conv.float8:
            return conv.of_float8(y, chunks, added), total
        output = conv(y, padding=int(not fused), outputs=outputs)
        output.residual = added
        return output, total


class ResnetBlock(nn.Module):
    """Norm, SiLU, convolution, twice; added to the input."""

    def __init__(self, inputs: int, outputs: int, groups: int, eps: float) -> None:
        super().__init__()
        self.norm1 = GroupNormSiLU(groups, inputs, eps)
        self.conv1 = CausalConv(inputs, outputs)
        self.norm2 = GroupNormSiLU(groups, outputs, eps)
        self.conv2 = CausalConv(outputs, outputs)
        self.conv_shortcut = nn.Conv3d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Sum, chunks: Sequence[int]) -> Sum:
        y, total = self.norm1(x, chunks, self.conv1, keep=True)
        if self.conv_shortcut is not None:
            total = functional.linear(total, self.conv_shortcut.weight.flatten(1), self.conv_shortcut.bias)
        return self.norm2(y, chunks, self.conv2, added=total)[0]


class Downsample(nn.Module):
    """The mean over pairs of frames if time is compressed, then a 3 x 3 convolution with stride 2."""

    def __init__(self, channels: int, pairs: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)
        self.pairs = pairs

    def forward(self, x: Sum, chunks: Sequence[int]) -> tuple[Sum, list[int]]:
        """Also gives the chunks' new lengths. The first frame of an odd number keeps to itself."""
        frames = time_pool(*x.take(), self.pairs)
        added, left = _bias(frames, self.conv.bias)
        y = functional.conv2d(frames.flatten(0, 1).permute(0, 3, 1, 2), self.conv.weight, added, stride=2)
        halved = [-(-length // 2) for length in chunks] if self.pairs else list(chunks)
        return Sum(y.permute(0, 2, 3, 1).unflatten(0, frames.shape[:2]), left), halved


class Level(nn.Module):
    """Residual blocks at one size of the picture, and the way to the next one."""

    def __init__(self, widths: Sequence[int], groups: int, eps: float, downsample: Downsample | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(i, o, groups, eps) for i, o in pairwise(widths))
        self.downsamplers = nn.ModuleList([downsample] if downsample else [])

    def forward(self, x: Sum, chunks: list[int]) -> tuple[Sum, list[int]]:
        for resnet in self.resnets:
            x = resnet(x, chunks)
        for downsample in self.downsamplers:
            x, chunks = downsample(x, chunks)
        return x, chunks


class CausalVideoEncoder(nn.Module):
    """Clips to the means of their latents, exactly as the library's autoencoder gives them.

    `load_state_dict` takes what the library's `autoencoder.encoder.state_dict()` gives, and nothing else.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        """
        Args:
            config: of the library's autoencoder.

        Raises:
            UserError: the autoencoder has parts that this encoder has not.
        """
        super().__init__()
        self.ratio = int(config["temporal_compression_ratio"])
        compressed = self.ratio.bit_length() - 1  # levels that halve the time, too
        if self.ratio not in (1, 2, 4, CHUNK):
            raise UserError(f"video encoder: temporal_compression_ratio {self.ratio} is none of 1, 2, 4 and {CHUNK}")
        if config["act_fn"] not in ("silu", "swish") or config["use_quant_conv"]:
            raise UserError("video encoder: needs act_fn silu and no quant_conv, as CogVideoX's published ones have it")
        widths, groups, eps = config["block_out_channels"], config["norm_num_groups"], config["norm_eps"]
        self.latents: int = config["latent_channels"]
        self.conv_in = CausalConv(config["in_channels"], widths[0])
        self.down_blocks = nn.ModuleList()
        for i, (inputs, outputs) in enumerate(zip((widths[0], *widths), widths)):
            downsample = Downsample(outputs, i < compressed) if i + 1 < len(widths) else None
            layers = [inputs] + [outputs] * config["layers_per_block"]
            self.down_blocks.append(Level(layers, groups, eps, downsample))
        self.mid_block = Level([widths[-1]] * 3, groups, eps, None)
        self.norm_out = GroupNormSiLU(groups, widths[-1], OUT_EPS)
        self.conv_out = CausalConv(widths[-1], 2 * self.latents)

    @classmethod
    def of(cls, autoencoder: AutoencoderKLCogVideoX, dtype: torch.dtype = torch.float32) -> Self:
        """The encoder of the library's autoencoder; does not change it.

        Raises:
            UserError: as for `CausalVideoEncoder`.
        """
        library: Any = autoencoder  # it gives its attributes to type checkers as unknown
        with torch.device("meta"):
            encoder = cls(library.config)
        encoder.load_state_dict(library.encoder.state_dict(), assign=True)
        encoder.to(dtype)
        for parameter in encoder.parameters():
            if parameter.ndim > 3:  # as the maps lie in memory
                layout = torch.channels_last_3d if parameter.ndim == 5 else torch.channels_last
                parameter.data = parameter.data.contiguous(memory_format=layout)
        return encoder

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] to (B, latents, T / ratio rounded up, H', W'), in the weights' dtype.

        Runs in channels-last memory.
        """
        frames = pixels.permute(0, 2, 3, 4, 1).contiguous()
        if pixels.shape[2] > 1:
            frames = torch.cat([frames[:, :1], frames[:, :1], frames], 1)
        return self._means(self.conv_in(frames), chunk_lengths(pixels.shape[2]))

    def of_frames(self, frames: Tensor) -> Tensor:
        """As `forward`, of clips (B, T, H, W, 3) uint8; scaling them is part of the first convolution on CUDA."""
        if not runs_triton(frames, self.conv_in.conv.weight):
            return self(scaled(frames).permute(0, 4, 1, 2, 3).to(self.conv_in.conv.weight.dtype))
        chunks = chunk_lengths(frames.shape[1])
        return self._means(self.conv_in.of_frames(frames, chunks), chunks)

    def use_float8(self) -> None:
        """Lets the residual blocks' convolutions, nearly all of the work, make their products of float8 numbers.

        Their inputs and weights are rounded to e4m3 (three bits after the first), sums, norms and maps are not.
        """
        for module in self.modules():
            if isinstance(module, ResnetBlock):
                module.conv1.use_float8()
                module.conv2.use_float8()

    def _means(self, x: Sum, chunks: list[int]) -> Tensor:
        """The latents' means, from the first convolution's output."""
        for block in (*self.down_blocks, self.mid_block):
            x, chunks = block(x, chunks)
        # The second half of the outputs are variances.
        means, _ = self.norm_out(x, chunks, self.conv_out, outputs=self.latents)
        return (means.value if means.bias is None else means.value + means.bias).permute(0, 4, 1, 2, 3)


def _bias(x: Tensor, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """What a convolution of x adds to its output, and what it leaves to the kernel that reads it.

    On CUDA adding it in the convolution is one more pass over the output, elsewhere it is free.
    """
    return (None, bias) if runs_triton(x) else (bias, None)


def _conv3d(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int, int]) -> Tensor:
    """`conv3d` that takes oneDNN for a clip alone as well: PyTorch leaves a small one to a loop ten times as slow."""
    alone = x.is_cpu and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    if torch.compiler.is_compiling() and x.is_cpu:
        # That loop gives back another layout than PyTorch's compiler reckons with, unless the input has it too.
        x, weight = x.contiguous(), weight.contiguous()
    if torch.compiler.is_compiling() or not alone or len(x) > 1:
        return functional.conv3d(x, weight, bias, padding=padding)
    return torch.mkldnn_convolution(x, weight, bias, padding, (1, 1, 1), (1, 1, 1), 1)
