"""What fine-tuning learns from: clips that the model's frozen parts have encoded once, and the folder they lie in."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from genreward_fast.errors import UserError
from genreward_fast.files import atomic_path, read_json, write_json
from genreward_fast.goals.sampled_digest import sampled_sha256


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


def noisy_first_frames(frame: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """First frames with the noise that CogVideoX's image-to-video training adds to their pixels (arXiv 2408.06072).

    Args:
        frame: (H, W, 3) uint8.
        count: K.

    Returns:
        (K, 3, H, W) float32, pixels in [-1, 1] plus σ · normal noise, log σ normal with mean -3 and deviation 0.5.
    """
    pixels = frame.permute(2, 0, 1).float() / 127.5 - 1
    sigma = (0.5 * torch.randn(count, 1, 1, 1, generator=generator) - 3).exp()
    return pixels + sigma * torch.randn(count, *pixels.shape, generator=generator)


class EncodedFolder:
    """Encoded clips in a folder: `clip-00000.safetensors` and so on, `empty_text.safetensors`, `encoded.json`."""

    def __init__(self, folder: str | Path) -> None:
        """
        Raises:
            UserError: no such folder, no clips in it, or a file is damaged.
        """
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"{folder}: no such folder; --data is a folder of encoded demonstrations")
        self._paths = sorted(self.folder.glob("clip-*.safetensors"))
        if not self._paths:
            raise UserError(f"{folder}: no encoded clips (clip-*.safetensors) in it; encode demonstrations first")
        try:
            self.fps = float(read_json(self.folder / "encoded.json")["fps"])
        except (TypeError, KeyError, ValueError):
            raise UserError(f"{self.folder / 'encoded.json'}: names no fps; encode the demonstrations again") from None
        if not 0 < self.fps < math.inf:
            raise UserError(f"{self.folder / 'encoded.json'}: fps {self.fps} must be above 0")
        self.empty_text = _read(self.folder / "empty_text.safetensors", ["text"])["text"]

    @cached_property
    def identity(self) -> str:
        files = [self.folder / "encoded.json", self.folder / "empty_text.safetensors", *self._paths]
        digests = [(path.name, sampled_sha256(path)) for path in files]
        return hashlib.sha256(json.dumps(digests).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> EncodedClip:
        """
        Raises:
            UserError: the file is damaged.
        """
        return EncodedClip(**_read(self._paths[index], [field.name for field in fields(EncodedClip)]))


def write_clip(folder: Path, index: int, clip: EncodedClip) -> None:
    """Adds a clip to a folder, or replaces it."""
    tensors = {field.name: getattr(clip, field.name).detach().cpu().contiguous() for field in fields(clip)}
    with atomic_path(folder / f"clip-{index:05d}.safetensors") as temporary:
        save_file(tensors, temporary)


def write_common(folder: Path, fps: float, empty_text: Tensor) -> None:
    """Writes what all clips of a folder share."""
    with atomic_path(folder / "empty_text.safetensors") as temporary:
        save_file({"text": empty_text.detach().cpu().contiguous()}, temporary)
    write_json(folder / "encoded.json", {"fps": fps})


def _read(path: Path, names: list[str]) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or missing ({error}); encode the demonstrations again") from error
    if sorted(tensors) != sorted(names):
        raise UserError(f"{path}: holds {sorted(tensors)}, not {sorted(names)}; encode the demonstrations again")
    return tensors
