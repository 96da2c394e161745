"""Which clips an update sees, and what is drawn for each.

Everything is a function of the seed and of the example's number alone, counted over the whole run: a resumed run needs
no generator's state, and the number of processes and of accumulated batches changes no draw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from torch import Tensor

from genreward_fast.errors import UserError
from genreward_fast.goals.finetune.config import FinetuneConfig
from genreward_fast.goals.finetune.encoded import EncodedClip, EncodedClips


@dataclass(frozen=True, eq=False)
class Example:
    """A clip with its draws; batched, each field has a first dimension B.

    Attributes:
        video: (C, T', H', W') float32, sampled from the autoencoder's distribution.
        image: (C, H', W') float32, the same of the first frame, or zeros.
        text: (L, D).
        timestep: () int64.
        noise: (F, C, H', W') float32, F as `Conditioning.video_latents` gives it.
    """

    video: Tensor
    image: Tensor
    text: Tensor
    timestep: Tensor
    noise: Tensor


def generator_of(seed: int, *names: int | str) -> torch.Generator:
    """A generator on the CPU whose draws depend on the seed and the names alone."""
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(count, generator=generator_of(seed, "order", epoch)).tolist()


def clip_index(number: int, count: int, seed: int) -> int:
    """Which of `count` clips the run's example `number` is: each once in an epoch, in a new order every time."""
    return _order(count, seed, number // count)[number % count]


def draw_example(
    clip: EncodedClip,
    empty_text: Tensor,
    generator: torch.Generator,
    config: FinetuneConfig,
    timesteps: int,
    patch_t: int,
) -> Example:
    """Draws all that is random in an example.

    Args:
        timesteps: of the noise schedule; each is as likely.
        patch_t: length of the transformer's patches in time.
    """
    frames = clip.video.shape[1] + -clip.video.shape[1] % patch_t
    chances = torch.rand(2, generator=generator)
    wording = int(torch.randint(len(clip.texts), (), generator=generator))
    which = int(torch.randint(len(clip.first_frames), (), generator=generator))
    timestep = torch.randint(timesteps, (), generator=generator)
    video = _sample(clip.video, generator)
    image = _sample(clip.first_frames[which], generator)
    shape = (frames, video.shape[0], *video.shape[2:])
    return Example(
        video=video,
        image=torch.zeros_like(image) if chances[1] < config.image_dropout else image,
        text=empty_text if chances[0] < config.caption_dropout else clip.texts[wording],
        timestep=timestep,
        noise=torch.randn(shape, generator=generator),
    )


def load_batch(
    clips: EncodedClips, numbers: Sequence[int], trained_on: int, config: FinetuneConfig, timesteps: int, patch_t: int
) -> Example:
    """The examples of these numbers, as one batch on the CPU.

    Args:
        trained_on: how many of the clips, from the first.

    Raises:
        UserError: clips of different shapes.
    """
    indices = [clip_index(number, trained_on, config.seed) for number in numbers]
    drawn = [
        draw_example(clips[i], clips.empty_text, generator_of(config.seed, "draw", n), config, timesteps, patch_t)
        for i, n in zip(indices, numbers)
    ]
    return stack(drawn, indices)


def stack(examples: Sequence[Example], indices: Sequence[int]) -> Example:
    """One batch of examples; `indices` are named if they do not fit together."""
    for index, example in zip(indices, examples):
        if example.noise.shape != examples[0].noise.shape:
            raise UserError(
                f"--data: clip {index} has latents of another shape than clip {indices[0]}; encode all at one size"
            )
    return Example(**{f.name: torch.stack([getattr(e, f.name) for e in examples]) for f in fields(Example)})


def _sample(moments: Tensor, generator: torch.Generator) -> Tensor:
    """A draw from the autoencoder's distribution, as its `DiagonalGaussianDistribution` makes it."""
    mean, log_variance = moments.float().chunk(2)
    return mean + (0.5 * log_variance.clamp(-30, 20)).exp() * torch.randn(mean.shape, generator=generator)
