"""What a run shows of itself: the loss on clips that it is not trained on, with fixed draws, and videos of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from genreward_fast.goals.finetune.batches import Example, draw_example, generator_of
from genreward_fast.goals.finetune.config import FinetuneConfig
from genreward_fast.goals.finetune.encoded import EncodedClip, EncodedClips
from genreward_fast.goals.video_model import Pipeline

_DRAWS = 4  # of each clip: losses at one timestep say little


def validation_examples(
    clips: EncodedClips, indices: range, config: FinetuneConfig, timesteps: int, patch_t: int
) -> list[Example]:
    """Examples of these clips with the same draws every time, at timesteps spread evenly; captions stay, frames too."""
    kept = FinetuneConfig(caption_dropout=0, image_dropout=0)
    examples = []
    for number in range(_DRAWS * len(indices)):
        clip = clips[indices[number // _DRAWS]]
        generator = generator_of(config.seed, "validation", number)
        example = draw_example(clip, clips.empty_text, generator, kept, timesteps, patch_t)
        spread = (2 * (number % _DRAWS) + 1) * timesteps // (2 * _DRAWS)
        examples.append(Example(example.video, example.image, example.text, torch.tensor(spread), example.noise))
    return examples


@torch.no_grad()
def validation_loss(examples: list[Example], loss_of: Callable[[Example], Tensor]) -> float:
    """The mean over the examples, one at a time."""
    batches = (Example(**{name: value[None] for name, value in vars(example).items()}) for example in examples)
    return float(torch.stack([loss_of(batch) for batch in batches]).mean())


@torch.no_grad()
def validation_video(
    pipeline: Pipeline, clip: EncodedClip, empty_text: Tensor, steps: int, dtype: torch.dtype
) -> Tensor:
    """(T, H, W, 3) uint8: the clip's first frame and first caption through the unmodified pipeline, always one seed."""
    device = pipeline.transformer.device
    arguments: dict[str, Any] = {
        "image": Image.fromarray(clip.frame.numpy()),
        "prompt_embeds": clip.texts[:1].to(device, dtype),
        "negative_prompt_embeds": empty_text[None].to(device, dtype),
    }
    ratio = pipeline.vae_scale_factor_temporal
    video = pipeline(
        **arguments,
        height=clip.frame.shape[0],
        width=clip.frame.shape[1],
        num_frames=(clip.video.shape[1] - 1) * ratio + 1,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).frames[0]
    return (video.permute(0, 2, 3, 1).float() * 255).round().clamp(0, 255).to("cpu", torch.uint8)
