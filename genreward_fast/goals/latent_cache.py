"""Demonstrations as the video model sees them: computed once, kept in files, read without the encoders.

    DIR/index.json                what the cache holds, and for which encoders and sizes; written last
    DIR/clips/KEY.safetensors     moments (2C, T', H', W') of the clip's latents and image_moments (2C, 1, H', W') of
                                  its first frame's, noisy_image_moments (K, 2C, H', W') of that with noise in its
                                  pixels, in the encoder's dtype; image (H, W, 3) uint8, the first frame
    DIR/captions/KEY.safetensors  embedding (L, D), in the text encoder's dtype

A KEY is a sha256 over all that the content depends on: the clip's bytes, the autoencoder's fingerprint, frames, height,
width and K; the caption's tokens and the text encoder's fingerprint. So a file is never computed twice, nor mistaken
for that of other settings; an interrupted fill goes on where it was.

Clips become alike: frames spread evenly over the clip, first and last among them, whatever its rate (they repeat where
the clip is shorter), the largest centred part of the wanted proportions, resized with antialiasing. Mean and deviation
are kept (moments), not a sample, so that training may draw anew each time.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from genreward_fast.errors import UserError
from genreward_fast.files import read_json

INDEX = "index.json"
FORMAT = {"format": "genreward latent cache", "version": 1}

_AGAIN = "delete it and fill the cache again"


@dataclass(frozen=True)
class CachedClip:
    """A clip and its captions, encoded. T' = (T - 1) / 4 + 1 latent frames.

    Attributes:
        name: of the clip in its set.
        captions: N wordings.
        texts: (N, L, D), their embeddings, padded to L tokens as diffusers' CogVideoX pipelines do.
        image: (H, W, 3) uint8, the first frame.
        moments: (2C, T', H', W'), mean and log variance of the clip's latents, unscaled.
        image_moments: (2C, 1, H', W'), likewise of the first frame encoded by itself, which the pipeline conditions
            on. It is not the first of the clip's latent frames: the autoencoder's norms average over time.
        noisy_image_moments: (K, 2C, H', W'), the same with noise in the pixels, K draws of it, for training.
        scale, image_scale: what the latents of each are multiplied with.
    """

    name: str
    captions: tuple[str, ...]
    texts: Tensor = field(repr=False)
    image: Tensor = field(repr=False)
    moments: Tensor = field(repr=False)
    image_moments: Tensor = field(repr=False)
    noisy_image_moments: Tensor = field(repr=False)
    scale: float
    image_scale: float

    def latents(self, generator: torch.Generator | None = None) -> Tensor:
        """(T', C, H', W'), a sample, scaled as the transformer expects it."""
        return _sample(self.moments, generator) * self.scale

    def image_latents(self, generator: torch.Generator | None = None) -> Tensor:
        """(1, C, H', W'), a sample, scaled as the image-to-video pipeline scales its condition."""
        return _sample(self.image_moments, generator) * self.image_scale


class LatentCache:
    """What `fill_latent_cache` left in a folder; a clip is read when it is asked for.

    Attributes:
        folder: where it lies.
        frames, height, width: of the clips in pixels (T, H, W).
        fingerprints: of the encoders, by the names vae and text.
        fingerprint: sha256 over all of the index: the same for the same clips, captions, encoders and sizes.
    """

    def __init__(self, folder: str | Path) -> None:
        """
        Raises:
            UserError: the folder holds no finished cache.
        """
        self.folder = Path(folder)
        path = self.folder / INDEX
        if not path.exists():
            raise UserError(f"{self.folder}: holds no finished cache of latents; fill it first")
        index: Any = read_json(path)
        try:
            if any(index[key] != value for key, value in FORMAT.items()):
                raise ValueError
            self.frames, self.height, self.width = (int(index[key]) for key in ("frames", "height", "width"))
            self.fingerprints: dict[str, str] = dict(index["encoders"])
            self._scale, self._image_scale = float(index["scale"]), float(index["image_scale"])
            self._clips = [(str(e["name"]), str(e["key"]), dict(e["captions"])) for e in index["clips"]]
            self._no_text = str(index["no_text"])
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path}: is not the index of a cache of version {FORMAT['version']}; {_AGAIN}") from None
        self.fingerprint = hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> CachedClip:
        """
        Raises:
            UserError: a file is missing or damaged.
        """
        name, key, captions = self._clips[index]
        tensors = read_tensors(clip_path(self.folder, key))
        texts = torch.stack([self._text(caption_key) for caption_key in captions.values()])
        try:
            return CachedClip(
                name=name,
                captions=tuple(captions),
                texts=texts,
                image=tensors["image"],
                moments=tensors["moments"],
                image_moments=tensors["image_moments"],
                noisy_image_moments=tensors["noisy_image_moments"],
                scale=self._scale,
                image_scale=self._image_scale,
            )
        except KeyError as error:
            raise UserError(f"{clip_path(self.folder, key)}: lacks the tensor {error}; {_AGAIN}") from None

    def no_text(self) -> Tensor:
        """(L, D), the embedding of the empty text: what classifier-free guidance drops a caption for."""
        return self._text(self._no_text)

    def _text(self, key: str) -> Tensor:
        return read_tensors(caption_path(self.folder, key))["embedding"]


def clip_path(folder: Path, key: str) -> Path:
    """Where the clip of that key lies."""
    return folder / "clips" / f"{key}.safetensors"


def caption_path(folder: Path, key: str) -> Path:
    """Where the caption of that key lies."""
    return folder / "captions" / f"{key}.safetensors"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one of the cache's files.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; fill the cache again") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: is damaged ({error}); {_AGAIN}") from error


def _sample(moments: Tensor, generator: torch.Generator | None) -> Tensor:
    return DiagonalGaussianDistribution(moments[None]).sample(generator)[0].transpose(0, 1)
