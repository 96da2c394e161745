"""The frame level's ψ: DINOv3's class token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DINOv3ViTModel

from genreward_fast.encoders.dino_network import ClassTokenNetwork
from genreward_fast.encoders.fingerprint import fingerprint
from genreward_fast.encoders.frozen import FrozenEncoder
from genreward_fast.encoders.sources import local_folder, read_transformers_model
from genreward_fast.errors import UserError
from genreward_fast.kernels.frames import FrameFormat
from genreward_fast.kernels.frames import frames as formatted

# What the weights trained on LVD-1689M expect (arXiv 2508.10104), as in the library's own image processor.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class ImageEncoder(FrozenEncoder):
    """DINOv3 (arXiv 2508.10104): single frames to the class token after the final norm.

    Frozen: eval mode, no gradients.

    Attributes:
        vit: the library's model.
        fast: the same function in fewer steps, with weights made from the model's; None if there is none for it.
        size: side in pixels to which frames are resized.
        format: what the model reads: frames squashed to that square.
        dim: length D of a feature.
        fingerprint: sha256 over weights and configuration.
        note: "" for trained weights, else what every output must say about them.
    """

    def __init__(
        self, vit: DINOv3ViTModel, *, size: int, dtype: torch.dtype = torch.float32, batch: int = 256, note: str = ""
    ) -> None:
        """
        Args:
            vit: taken over, not copied: it is cast to `dtype`.
            batch: frames per call at most.

        Raises:
            UserError: the model cannot take frames of this size.
        """
        super().__init__()
        model: Any = vit
        config = model.config
        if size % config.patch_size or size < config.patch_size:
            raise UserError(f"image size {size}: must be a positive multiple of the patch size {config.patch_size}")
        self.size = size
        self.format = FrameFormat((size, size), _MEAN, _STD)
        self.dim: int = config.hidden_size
        self.batch = batch
        self.note = note
        keys = ("hidden_act", "layer_norm_eps", "num_attention_heads", "num_register_tokens", "patch_size")
        described = {key: getattr(config, key) for key in keys}
        self.fingerprint = fingerprint(model, described | {"rope_theta": config.rope_theta, "size": size})
        self.fast = ClassTokenNetwork.of(vit, size, dtype)
        self.vit: Any = model.to(dtype)
        self._features = self.graphed(self._encode_frames)
        self.freeze()

    @property
    def dtype(self) -> torch.dtype:
        return self.vit.norm.weight.dtype

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(size, size, 3): one frame."""
        return self.size, self.size, 3

    @property
    def weights(self) -> DINOv3ViTModel:
        return self.vit

    def preprocess(self, frames: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 to (N, 3, size, size) in the encoder's dtype on its device, channels last.

        Rescaled to [0, 1], squashed to the square with antialiased bilinear interpolation, normalised with ImageNet's
        mean and deviation: what the library's `DINOv3ViTImageProcessor` computes, which rounds nothing to bytes.
        """
        return formatted(frames.to(self.device), self.format, self.dtype)

    def network(self, pixels: Tensor) -> Tensor:
        """(N, 3, size, size) normalised to class tokens (N, D), in the encoder's dtype; one call, no split."""
        if self.fast is None or torch.compiler.is_exporting():  # engines hold the model's own weights
            return self.vit(pixel_values=pixels).pooler_output
        return self.fast(pixels)

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """Features of frames.

        Args:
            frames: (N, H, W, 3) uint8, of any size.

        Returns:
            (N, D) float32.

        Raises:
            ValueError: another shape or dtype.
        """
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise ValueError(f"frames must be (N, H, W, 3) uint8, not {tuple(frames.shape)} {frames.dtype}")
        if frames.shape[0] == 0:
            return torch.empty(0, self.dim, device=self.device)
        return torch.cat([self._features(part) for part in frames.to(self.device).split(self.batch)])

    def _encode_frames(self, frames: Tensor) -> Tensor:
        return self.encode(self.preprocess(frames)).float()


def read_dino(source: str, option: str = "--dino") -> DINOv3ViTModel:
    """Loads DINOv3 in float32 on the CPU.

    Args:
        source: hub id, or folder, that holds config.json and safetensors.

    Raises:
        UserError: unreachable, missing, damaged, or another model.
    """
    folder = local_folder(source, ["config.json", "*.safetensors*"], option)
    return read_transformers_model(DINOv3ViTModel, folder, "DINOv3", option)
