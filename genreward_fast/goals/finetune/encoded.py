"""What fine-tuning learns from: clips that the model's frozen parts have encoded once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from genreward_fast.goals.latent_cache import LatentCache

FPS = 8.0
"""Of videos made from cached clips: their frames are spread evenly over clips of any rate. CogVideoX's own."""


@dataclass(frozen=True, eq=False)
class EncodedClip:
    """A demonstration as the video autoencoder and the text encoder give it.

    Attributes:
        video: (2C, T', H', W') the autoencoder's means and log variances of the clip, without a scaling factor.
        first_frames: (K, 2C, H', W') the same of the first frame alone, K times, each with noise of its own in the
            pixels (`noisy_first_frames`).
        texts: (N, L, D) embeddings of N wordings of the caption.
        frame: (H, W, 3) uint8 RGB, the first frame.
    """

    video: Tensor
    first_frames: Tensor
    texts: Tensor
    frame: Tensor


class EncodedClips(Protocol):
    """Clips of one shape. Index i always gives the same clip.

    Attributes:
        fps: frames per second of the clips.
        empty_text: (L, D) embedding of "".
    """

    fps: float
    empty_text: Tensor

    @property
    def identity(self) -> str:
        """Changes with the clips and with what encoded them; a run is resumed with the same one only."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> EncodedClip: ...


class CachedClips:
    """The clips of a cache of latents (`goals/latent_cache.py`)."""

    fps = FPS

    def __init__(self, folder: str | Path) -> None:
        """
        Raises:
            UserError: the folder holds no finished cache, or a file in it is damaged.
        """
        self._cache = LatentCache(folder)
        self.empty_text: Tensor = self._cache.no_text()

    @property
    def identity(self) -> str:
        return self._cache.fingerprint

    def __len__(self) -> int:
        return len(self._cache)

    def __getitem__(self, index: int) -> EncodedClip:
        """
        Raises:
            UserError: a file is missing or damaged.
        """
        clip = self._cache[index]
        return EncodedClip(clip.moments, clip.noisy_image_moments, clip.texts, clip.image)
