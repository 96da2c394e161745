"""A first frame and a text become videos, through diffusers' pipeline for CogVideoX image-to-video."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from genreward_fast.errors import UserError
from genreward_fast.goals.approximation import APPROXIMATIONS, approximate
from genreward_fast.goals.attention import ATTENTION, attention
from genreward_fast.goals.fused_blocks import fuse_blocks
from genreward_fast.goals.video_model import Pipeline, explaining_out_of_memory


@dataclass(frozen=True)
class GenerationConfig:
    """
    Attributes:
        steps: of denoising.
        guidance: scale of classifier-free guidance (arXiv 2207.12598); up to 1 is none, and half the work.
        frames, height, width: of the video; None for the checkpoint's.
        seed: of the first candidate; the next ones have the next seeds.
        candidates: videos to make.
        batch: how many of them at once. It does not change what is drawn for a candidate.
        attention: which of PyTorch's attentions computes: auto, cudnn, flash, efficient or math. The same up to
            rounding.
        compile: fuse and compile the transformer's block once, for all layers (`goals/fused_blocks.py`). The same up
            to rounding.
        approximate: none, first-block or attention-broadcast (`goals/approximation.py`). It changes the videos.
        threshold: of first-block; the higher, the more steps are skipped, and 0 skips none. It judges all videos of a
            batch together, so that a candidate depends on its batch.

    Raises:
        UserError: a value that makes no sense.
    """

    steps: int = 50
    guidance: float = 6.0
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    seed: int = 0
    candidates: int = 1
    batch: int = 1
    attention: str = "auto"
    compile: bool = False
    approximate: str = "none"
    threshold: float = 0.05

    def __post_init__(self) -> None:
        for name in ("steps", "candidates", "batch", "frames", "height", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} {value}: must be at least 1")
        if self.seed < 0 or self.guidance < 0:
            raise UserError(f"--seed {self.seed}, --guidance {self.guidance}: must not be negative")
        if self.attention not in ATTENTION:
            raise UserError(f"--attention {self.attention}: use one of {', '.join(ATTENTION)}")
        if self.approximate not in APPROXIMATIONS:
            raise UserError(f"--approximate {self.approximate}: use one of {', '.join(APPROXIMATIONS)}")
        if not self.threshold >= 0:
            raise UserError(f"--threshold {self.threshold}: must not be negative")


@dataclass(frozen=True)
class VideoSize:
    """Frames, and pixels of a frame's sides."""

    frames: int
    height: int
    width: int


def video_size(pipeline: Pipeline, config: GenerationConfig) -> VideoSize:
    """The size of the videos.

    Raises:
        UserError: the model cannot make videos of that size.
    """
    model = pipeline.transformer.config
    spatial, temporal = pipeline.vae_scale_factor_spatial, pipeline.vae_scale_factor_temporal
    own = VideoSize(model.sample_frames, model.sample_height * spatial, model.sample_width * spatial)
    size = VideoSize(config.frames or own.frames, config.height or own.height, config.width or own.width)
    if size.frames % temporal != 1:
        raise UserError(f"--frames {size.frames}: must be a multiple of {temporal} plus 1")
    side = spatial * model.patch_size
    if size.height % side or size.width % side:
        raise UserError(f"--size {size.height}x{size.width}: both must be multiples of {side}")
    if model.use_learned_positional_embeddings and (size.height, size.width) != (own.height, own.width):
        raise UserError(f"--size {size.height}x{size.width}: this model knows {own.height}x{own.width} only")
    return size


class VideoGenerator:
    """Makes videos with one model.

    Attributes:
        size: of the videos.
    """

    def __init__(self, pipeline: Pipeline, config: GenerationConfig) -> None:
        """
        Args:
            pipeline: on its device; its text encoder is not used. Compiling and approximating change its transformer.

        Raises:
            UserError: the model cannot make videos of that size, or not in so many steps.
        """
        self.pipeline, self.config = pipeline, config
        self.size = video_size(pipeline, config)
        most = pipeline.scheduler.config.num_train_timesteps
        if config.steps > most:
            raise UserError(f"--steps {config.steps}: the model's schedule has {most}")
        if config.compile:
            fuse_blocks(pipeline.transformer, config.attention)
        approximate(pipeline.transformer, config.approximate, config.threshold)

    def generate(
        self, image: Tensor, text: Tensor, empty_text: Tensor, seed: int | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """Makes the candidates, each given as soon as its batch is done.

        Args:
            image: (H, W, 3) uint8 RGB, the first frame: its centre of the video's shape is resized to the video's size.
            text, empty_text: (L, D) embeddings of the task and of "".
            seed: of the first candidate; None for the config's.

        Yields:
            the candidate's seed, and (T, H, W, 3) uint8 RGB on the CPU.

        Raises:
            RunFailed: out of memory.
        """
        first = fit_image(image, self.size)
        first_seed = self.config.seed if seed is None else seed
        seeds = range(first_seed, first_seed + self.config.candidates)
        for start in range(0, len(seeds), self.config.batch):
            batch = seeds[start : start + self.config.batch]
            with explaining_out_of_memory("generating a video", "lower --batch, --frames or --size"):
                videos = self._batch(first, text, empty_text, batch)
            yield from zip(batch, videos)

    def latents(self, image: Tensor, text: Tensor, empty_text: Tensor, seed: int) -> Tensor:
        """(1, F, C, H', W') of one candidate, not decoded: the arguments are `generate`'s."""
        return self._sample(fit_image(image, self.size), text, empty_text, range(seed, seed + 1), "latent")

    def _batch(self, first: Image.Image, text: Tensor, empty_text: Tensor, seeds: range) -> Tensor:
        frames = self._sample(first, text, empty_text, seeds, "pt")
        return (frames.permute(0, 1, 3, 4, 2).float() * 255).round().clamp(0, 255).to("cpu", torch.uint8)

    @torch.no_grad()
    def _sample(self, first: Image.Image, text: Tensor, empty_text: Tensor, seeds: range, output: str) -> Tensor:
        config, transformer = self.config, self.pipeline.transformer
        count = len(seeds)
        embeddings = {"prompt_embeds": text, "negative_prompt_embeds": empty_text}
        arguments: dict[str, Any] = {
            name: value.to(transformer.device, transformer.dtype).expand(count, -1, -1)
            for name, value in embeddings.items()
        }
        if transformer.is_cache_enabled:
            transformer._reset_stateful_cache()  # or the first step would be compared with the last video's
        with attention(config.attention):
            return self.pipeline(
                [first] * count,
                **arguments,
                height=self.size.height,
                width=self.size.width,
                num_frames=self.size.frames,
                num_inference_steps=config.steps,
                guidance_scale=config.guidance,
                # One for each, on the CPU: a candidate is the same in any batch, and drawn alike on any device.
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type=output,
            ).frames


def fit_image(image: Tensor, size: VideoSize) -> Image.Image:
    """The centre of (H, W, 3) uint8 in the shape of the video, resized to it (Lanczos, as the pipeline does)."""
    height, width = image.shape[:2]
    scale = min(height / size.height, width / size.width)
    crop_height, crop_width = round(size.height * scale), round(size.width * scale)
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    picture = Image.fromarray(image.numpy()).crop((left, top, left + crop_width, top + crop_height))
    return picture.resize((size.width, size.height), Image.Resampling.LANCZOS)
