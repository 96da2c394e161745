"""Pictures with captions out of demonstrations, for the small model's fit."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import torch
from torch import Tensor

from genreward_fast.goals.demos import DemoSet
from genreward_fast.goals.frames import to_square, uniform_indices
from genreward_fast.goals.progress import progress

FRAMES = 32
"""Of each clip, spread evenly over it."""


@dataclass(frozen=True)
class Pictures:
    """
    Attributes:
        frames: (N, S, S, 3) uint8.
        clip: (N,) int64, the clip that each is of.
        captions: of each clip, several wordings.
        identity: sha256 of the clips and their captions.
    """

    frames: Tensor
    clip: Tensor
    captions: tuple[tuple[str, ...], ...]
    identity: str

    def draw(self, count: int, dropout: float, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """`count` frames drawn uniformly with replacement, (count, S, S, 3) uint8, and for each one of its captions, or
        "" with probability `dropout`.
        """
        picked = torch.randint(len(self.frames), (count,), generator=generator)
        chances = torch.rand(count, 2, generator=generator, dtype=torch.float64).tolist()
        texts = []
        for clip, (dropped, which) in zip(self.clip[picked].tolist(), chances):
            wordings = self.captions[clip]
            texts.append("" if dropped < dropout else wordings[int(which * len(wordings))])
        return self.frames[picked], texts


def read_pictures(demos: DemoSet, size: int) -> Pictures:
    """The frames of all clips at `size` pixels, kept in memory: 400 MB for 1000 clips of 64 pixels.

    Raises:
        UserError: a file is missing, damaged or too short.
    """
    frames, clips, digests = [], [], []
    for number, demo in enumerate(progress(demos, unit="clip", desc="reading")):
        video = demo.frames()
        kept = uniform_indices(len(video), min(FRAMES, len(video)))
        frames.append(to_square(video[kept], size))
        clips.append(torch.full((len(kept),), number))
        digests.append([demo.sha256, demo.captions])
    identity = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    return Pictures(torch.cat(frames), torch.cat(clips), tuple(demo.captions for demo in demos), identity)
