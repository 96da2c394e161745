"""S3D as RoboCLIP uses it: clips, and with the weights of its paper also sentences, to one vector each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from genreward_fast.encoders.fingerprint import fingerprint
from genreward_fast.encoders.frozen import FrozenEncoder
from genreward_fast.encoders.s3d_network import MAX_WORDS, TextVideoS3D
from genreward_fast.errors import UserError

# What torchvision's weights of Kinetics-400 were trained with.
_KINETICS_MEAN = (0.43216, 0.394666, 0.37645)
_KINETICS_STD = (0.22803, 0.22145, 0.216989)
_CLIPS = 16  # at once: 32 frames of one are 50 MB behind the first convolution


class KineticsS3D(nn.Module):
    """torchvision's S3D up to its last features, averaged over space and time; it has no text tower."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module) -> None:
        """
        Args:
            model: `torchvision.models.video.S3D`; its classifier is not used.
        """
        super().__init__()
        self.features: Any = model.features
        self.register_buffer("mean", torch.tensor(_KINETICS_MEAN).view(3, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_KINETICS_STD).view(3, 1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, K, H, W) in [0, 1], K > 4, to (B, 1024)."""
        return self.features((pixels - self.mean) / self.std).mean(dim=(2, 3, 4))


class S3DEncoder(FrozenEncoder):
    """Clips to vectors, in float32: an inner product of two is the reward.

    Attributes:
        size: side of the frames in pixels.
        least_frames: of a clip.
        fingerprint: sha256 over weights and pixel range.
        note: "" for trained weights, else what every output must say about them.
    """

    def __init__(
        self,
        model: TextVideoS3D | KineticsS3D,
        *,
        size: int = 224,
        vocabulary: Mapping[str, int] | None = None,
        byte_pixels: bool = False,
        note: str = "",
    ) -> None:
        """
        Args:
            model: taken over, not copied.
            vocabulary: word -> row of the text tower's table; None if only clips are encoded.
            byte_pixels: give the paper's S3D pixels from 0 to 255.

        Raises:
            UserError: `byte_pixels` with torchvision's S3D, which has never seen such pixels.
        """
        super().__init__()
        if byte_pixels and isinstance(model, KineticsS3D):
            raise UserError("--roboclip-byte-pixels: is for the S3D of the paper; torchvision's takes [0, 1]")
        self.size = size
        self.note = note
        self.vocabulary = vocabulary
        self.model = model
        self.least_frames = 5 if isinstance(model, KineticsS3D) else 2
        self._largest_pixel = 255.0 if byte_pixels else 1.0
        self.fingerprint = fingerprint(model, {"size": size, "largest pixel": self._largest_pixel})
        self._vectors = self.graphed(self._encode_frames)
        self.freeze()

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """(least frames, size, size, 3): the shortest clip."""
        return self.least_frames, self.size, self.size, 3

    @property
    def weights(self) -> nn.Module:
        return self.model

    def preprocess(self, frames: Tensor) -> Tensor:
        """(B, K, S, S, 3) uint8 to (B, 3, K, S, S) float32, from 0 to 1 (or 255)."""
        return frames.to(self.device).permute(0, 4, 1, 2, 3).float() * (self._largest_pixel / 255)

    def network(self, pixels: Tensor) -> Tensor:
        return self.model(pixels)

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """(B, K, size, size, 3) uint8 to (B, D) float32.

        Raises:
            ValueError: another shape or dtype, too few frames, or an odd number of them for the paper's S3D.
        """
        if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[2:] != (self.size, self.size, 3):
            raise ValueError(
                f"clips must be (B, K, {self.size}, {self.size}, 3) uint8, not {tuple(frames.shape)} {frames.dtype}"
            )
        count = frames.shape[1]
        if count < self.least_frames:
            raise ValueError(f"this S3D needs clips of at least {self.least_frames} frames, not {count}")
        if count % 2 and isinstance(self.model, TextVideoS3D):
            raise ValueError(f"the paper's S3D takes an even number of frames, not {count}")
        return torch.cat([self._vectors(part) for part in frames.to(self.device).split(_CLIPS)])

    @torch.no_grad()
    def text(self, sentence: str) -> Tensor:
        """(D,) float32. Words that the vocabulary lacks are left out, and those behind the sixteenth.

        Raises:
            UserError: there is no text tower or vocabulary, or the vocabulary has none of the words.
        """
        if not isinstance(self.model, TextVideoS3D) or self.vocabulary is None:
            raise UserError("a goal in words needs the S3D of the paper (s3d_howto100m.pth), with its vocabulary")
        words = re.findall(r"[\w']+", sentence.lower())
        tokens = [self.vocabulary[word] for word in words if word in self.vocabulary][:MAX_WORDS]
        if not tokens:
            raise UserError(f"{sentence!r}: S3D's vocabulary has none of these words; use other ones, in English")
        padded = torch.tensor([tokens + [0] * (MAX_WORDS - len(tokens))], device=self.device)
        return self.model.text_module(padded).squeeze(0).float()

    def _encode_frames(self, frames: Tensor) -> Tensor:
        return self.encode(self.preprocess(frames)).float()
