"""The video level's ψ: the encoder of the video diffusion model's autoencoder."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor

from genreward_fast.encoders.causal_vae import CausalVideoEncoder
from genreward_fast.encoders.fingerprint import fingerprint
from genreward_fast.encoders.frozen import FrozenEncoder
from genreward_fast.encoders.sources import local_folder, read_diffusers_model
from genreward_fast.errors import UserError
from genreward_fast.kernels.frame_conv import scaled

_MAX_ELEMENTS = 2**31 - 1  # convolutions index with 32 bits
_PIXELS = {"cpu": 1, "cuda": 16 * 480**2}
"""Of the clips in a call, one clip at least: more of them are no faster, and take more memory."""


class VideoEncoder(FrozenEncoder):
    """CogVideoX's causal video autoencoder (arXiv 2408.06072), encoder half: clips to latent means.

    Frozen: eval mode, no gradients.

    Attributes:
        encoder: the network, from pixels to latent means.
        size: side in pixels of the frames it takes.
        clip_length: frames of a window's clip (K).
        channels: latent channels C.
        fingerprint: sha256 over weights and configuration.
        note: "" for trained weights, else what every output must say about them.
    """

    def __init__(
        self,
        vae: AutoencoderKLCogVideoX,
        *,
        size: int,
        clip_length: int = 16,
        dtype: torch.dtype = torch.float32,
        float8: bool = False,
        note: str = "",
    ) -> None:
        """
        Args:
            vae: is not changed; its decoder is not used.
            float8: make nearly all products of float8 numbers; engines do not.

        Raises:
            UserError: the autoencoder cannot take frames of this size, or is not computed as CogVideoX's.
        """
        super().__init__()
        model: Any = vae  # the library gives its attributes to type checkers as unknown
        config = model.config
        self.spatial = 2 ** (len(config.block_out_channels) - 1)
        if size % self.spatial or size < self.spatial:
            raise UserError(f"clip size {size}: must be a positive multiple of {self.spatial} for this video encoder")
        self.size = size
        self.clip_length = clip_length
        self.channels: int = config.latent_channels
        self.width: int = config.block_out_channels[0]
        self.note = note
        keys = ("act_fn", "norm_eps", "norm_num_groups", "temporal_compression_ratio")
        self.fingerprint = fingerprint(model.encoder, {key: config[key] for key in keys} | {"size": size})
        self.encoder = CausalVideoEncoder.of(vae, dtype)
        if float8:
            self.encoder.use_float8()
        self._latents = self.graphed(self._encode_frames)
        self.freeze()

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder.conv_in.conv.weight.dtype

    @property
    def frame_shape(self) -> tuple[int, int, int, int]:
        """(K, size, size, 3): one clip."""
        return self.clip_length, self.size, self.size, 3

    @property
    def weights(self) -> CausalVideoEncoder:
        return self.encoder

    def latent_shape(self, length: int) -> tuple[int, int, int, int]:
        """(C, T', H', W') of the latent of `length` frames."""
        side = self.size // self.spatial
        return self.channels, -(-length // self.encoder.ratio), side, side

    def max_batch(self, length: int) -> int:
        """How many clips of `length` frames one call may hold: 4 for 16 frames at 480 pixels and 128 channels."""
        per_clip = self.width * (length + 2) * (self.size + 2) ** 2
        return max(1, _MAX_ELEMENTS // per_clip)

    def preprocess(self, frames: Tensor) -> Tensor:
        """(B, T, H, W, 3) uint8 to (B, 3, T, H, W) in the encoder's dtype on its device, scaled to [-1, 1]."""
        # Scaled first: TensorRT permutes no bytes.
        return scaled(frames.to(self.device)).permute(0, 4, 1, 2, 3).to(self.dtype)

    def network(self, pixels: Tensor) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] to latent means (B, C, T', H', W'), in the encoder's dtype; one call, no split."""
        return self.encoder(pixels)

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """Latent means of clips.

        Args:
            frames: (B, T, size, size, 3) uint8, T a multiple of 4, or one more.

        Returns:
            (B, C, T', size/8, size/8) float32, T' = ceil(T / 4), without the diffusion model's scaling factor.

        Raises:
            ValueError: another shape or dtype.
        """
        ratio = self.encoder.ratio
        if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[2:] != (self.size, self.size, 3):
            raise ValueError(
                f"clips must be (B, T, {self.size}, {self.size}, 3) uint8, not {tuple(frames.shape)} {frames.dtype}"
            )
        if frames.shape[1] < 1 or frames.shape[1] % ratio > 1:
            raise ValueError(f"a clip must have {ratio}n or {ratio}n + 1 frames, not {frames.shape[1]}")
        if frames.shape[0] == 0:
            return torch.empty(0, *self.latent_shape(frames.shape[1]), device=self.device)
        enough = max(1, _PIXELS.get(self.device.type, 1) // (frames.shape[1] * self.size**2))
        parts = frames.to(self.device).split(min(self.max_batch(frames.shape[1]), enough))
        return torch.cat([self._latents(part) for part in parts])

    def _encode_frames(self, frames: Tensor) -> Tensor:
        if self.engine is None:
            with self.products(self.dtype, frames):
                return self.encoder.of_frames(frames).float()
        return self.encode(self.preprocess(frames)).float()


def read_vae(source: str, option: str = "--vae") -> AutoencoderKLCogVideoX:
    """Loads the whole autoencoder (decoder too) in float32 on the CPU.

    Args:
        source: hub id, or folder, that holds config.json and safetensors, itself or in its subfolder `vae`.

    Raises:
        UserError: unreachable, missing, damaged, or another model.
    """
    folder = local_folder(source, ["vae/config.json", "vae/*.safetensors*", "config.json"], option)
    if (folder / "vae").is_dir():
        folder = folder / "vae"
    return read_diffusers_model(AutoencoderKLCogVideoX, folder, "a CogVideoX autoencoder", option)
