"""From a text and a picture's file to video files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from genreward_fast.encoders.presets import default_dtype
from genreward_fast.errors import UserError
from genreward_fast.goals.generation import GenerationConfig, VideoGenerator
from genreward_fast.goals.lora import load_lora
from genreward_fast.goals.text_embeddings import TextEmbeddings
from genreward_fast.goals.video_io import write_video
from genreward_fast.goals.video_model import model_folder, model_source, read_pipeline, require_generate_extra


def read_image(path: Path) -> Tensor:
    """(H, W, 3) uint8 RGB of a picture's file.

    Raises:
        UserError: missing, or not a picture.
    """
    try:
        with Image.open(path) as picture:
            return torch.from_numpy(np.array(picture.convert("RGB")))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; --image is the first frame, a png or jpg") from None
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as a picture ({type(error).__name__}); use a png or jpg") from error


def parse_size(size: str | None) -> tuple[int | None, int | None]:
    """ "480x720" to its height and width; None to the model's own.

    Raises:
        UserError: another form.
    """
    if size is None:
        return None, None
    height, _, width = size.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise UserError(f"--size {size}: must be HEIGHTxWIDTH, for example 480x720")
    return int(height), int(width)


def candidate_paths(out: Path, config: GenerationConfig) -> dict[int, Path]:
    """The file of each seed: `out` itself for one candidate, and with `-seedN` in the name for several."""
    seeds = range(config.seed, config.seed + config.candidates)
    if len(seeds) == 1:
        return {seeds[0]: out}
    return {seed: out.with_name(f"{out.stem}-seed{seed}{out.suffix}") for seed in seeds}


def load_generator(
    text: str, preset: str, model: str | None, lora: Path | None, config: GenerationConfig, device: torch.device
) -> tuple[VideoGenerator, Tensor]:
    """A generator on its device, and the embeddings of the task and of "" that it takes: (2, L, D).

    Raises:
        UserError: no such model or LoRA, one of them is damaged, or the model cannot do what is asked.
    """
    folder = model_folder(model_source(preset, model))
    dtype = default_dtype(device)
    pipeline = read_pipeline(folder, dtype)
    if lora is not None:
        load_lora(pipeline, lora)
    generator = VideoGenerator(pipeline, config)  # refuses what the model cannot do before the text encoder is loaded
    length = pipeline.transformer.config.max_text_seq_length
    embedded = TextEmbeddings(folder, length=length, dtype=dtype, device=device)([text.strip(), ""])
    pipeline.to(device)
    return generator, embedded


def generate(
    text: str,
    image: Path,
    preset: str,
    model: str | None,
    lora: Path | None,
    out: Path,
    config: GenerationConfig,
    *,
    fps: float,
    device: torch.device,
    overwrite: bool = False,
) -> list[Path]:
    """Makes videos and writes each as soon as it is there.

    Returns:
        the files.

    Raises:
        UserError: bad input.
        RunFailed: out of memory.
    """
    require_generate_extra()
    if not text.strip():
        raise UserError("--text: is empty; say what the robot is to do")
    if out.suffix != ".mp4":
        raise UserError(f"{out}: a video's file name must end in .mp4")
    if not fps > 0:
        raise UserError(f"--fps {fps}: must be above 0")
    paths = candidate_paths(out, config)
    existing = [path for path in paths.values() if path.exists()]
    if existing and not overwrite:
        raise UserError(f"{existing[0]}: exists already; name another file with --out, or use --overwrite")
    first = read_image(image)
    generator, embedded = load_generator(text, preset, model, lora, config, device)
    for seed, video in generator.generate(first, *embedded):
        write_video(paths[seed], video, fps)
    return list(paths.values())
