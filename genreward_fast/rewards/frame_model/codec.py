"""Frames as short sequences of discrete codes: a VQ autoencoder (van den Oord et al. 2017) of one frame at a time."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import VQModel
from torch import Tensor, nn
from torch.nn import functional

from genreward_fast.encoders.fingerprint import fingerprint
from genreward_fast.encoders.sources import read_diffusers_model
from genreward_fast.errors import UserError
from genreward_fast.kernels.precision import exact_products

SIZE = 64
"""Side in pixels of the frames, which is that of the agent's own."""
MOST_CODES = 2048
"""A frame's codes are kept with the experience as float16, which counts no further."""

ARCHITECTURES: dict[str, dict[str, Any]] = {
    # Diffusion Reward's: 8×8 codes of 1024, of 64 numbers each.
    "paper": {
        "block_out_channels": (128, 128, 256, 256), "latent_channels": 64, "num_vq_embeddings": 1024,
    },
    # 4×4 codes of 128, of 16 numbers each.
    "tiny": {
        "block_out_channels": (8, 16, 16, 32, 32), "latent_channels": 16, "num_vq_embeddings": 128,
        "norm_num_groups": 4,
    },
}  # fmt: skip


class FrameCodec(nn.Module):
    """A frame of 64×64 pixels, in [-1, 1], to `length` codes below `vocabulary`, and back.

    Attributes:
        model: diffusers' network.
        grid: side of the square of codes.
        length: codes of a frame, grid².
        vocabulary: size of the codebook.
        used: (vocabulary,) float32, how often `loss` has met each code since the last `restart_unused`.
    """

    used: Tensor

    def __init__(self, model: VQModel):
        """
        Raises:
            UserError: it has more codes than can be kept.
        """
        super().__init__()
        network: Any = model  # the library gives its attributes to type checkers as unknown
        self.model, config = network, network.config
        self.vocabulary: int = config.num_vq_embeddings
        if self.vocabulary > MOST_CODES:
            raise UserError(f"a codec of {self.vocabulary} codes: at most {MOST_CODES} can be kept; fit a smaller one")
        self.grid = SIZE // 2 ** (len(config.block_out_channels) - 1)
        self.length = self.grid**2
        network.quantize.legacy = False  # its default weighs codebook and commitment the wrong way round
        self.register_buffer("used", torch.zeros(self.vocabulary))

    @property
    def codebook(self) -> Tensor:
        """(vocabulary, C): the vector that each code stands for."""
        return self.model.quantize.embedding.weight

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.model, {"name": "vq codec"})

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """(N, 64, 64, 3) uint8 to (N, length) int64, row by row. Rounding must not choose codes: without TF32."""
        with exact_products() if frames.is_cuda else nullcontext():
            vectors = self.model.encode(_pixels(frames)).latents.permute(0, 2, 3, 1).flatten(1, 2)
            return torch.cdist(vectors, self.codebook.expand(len(vectors), -1, -1)).argmin(-1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """(N, length) codes to (N, 64, 64, 3) uint8."""
        vectors = self.codebook[codes].unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2).contiguous()
        pixels = self.model.decode(vectors, force_not_quantize=True).sample
        return ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)

    def loss(self, frames: Tensor) -> Tensor:
        """Mean absolute error of the pixels, plus the codebook's loss and a quarter of the commitment's."""
        pixels = _pixels(frames)
        quantised, codebook_loss, (_, _, codes) = self.model.quantize(self.model.encode(pixels).latents)
        self.used.add_(torch.bincount(codes.flatten(), minlength=self.vocabulary))
        output = self.model.decode(quantised, force_not_quantize=True).sample
        return functional.l1_loss(output, pixels) + codebook_loss

    @torch.no_grad()
    def restart_unused(self, frames: Tensor) -> None:
        """Puts each code that `loss` has not met since the last call at what a random part of `frames` is encoded to.

        A code that is the nearest of nothing gets no gradient either, and would stay where it is for ever.
        """
        vectors = self.model.encode(_pixels(frames)).latents.permute(0, 2, 3, 1).flatten(0, 2)
        drawn = vectors[torch.randint(len(vectors), (self.vocabulary,), device=vectors.device)]
        self.codebook.copy_(torch.where((self.used == 0).unsqueeze(1), drawn, self.codebook))
        self.used.zero_()


def build_codec(preset: str) -> FrameCodec:
    """An untrained one, with weights from the global generator."""
    blocks = len(ARCHITECTURES[preset]["block_out_channels"])
    return FrameCodec(
        VQModel(
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            sample_size=SIZE,
            **ARCHITECTURES[preset],
        )
    )


def read_codec(folder: Path, option: str) -> FrameCodec:
    """
    Raises:
        UserError: missing, damaged, or another model.
    """
    return FrameCodec(read_diffusers_model(VQModel, folder, "a VQ codec", option))


def _pixels(frames: Tensor) -> Tensor:
    """(N, S, S, 3) uint8 to (N, 3, S, S) float32 in [-1, 1]."""
    return frames.permute(0, 3, 1, 2).float() / 127.5 - 1
