"""`genreward generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from genreward_fast.commands.options import DEVICE_HELP, FOLDER, SectionedCommand, section


@click.command(cls=SectionedCommand)
@click.option("--text", required=True, help="The task in words.")
@click.option("--image", type=FOLDER, required=True, help="The first frame: a png or jpg.")
@click.option("--preset", default="paper", show_default=True, help="Whose model: paper (CogVideoX-5B-I2V) or tiny.")
@click.option("--model", help="Hub id or folder of a CogVideoX image-to-video model, instead of the preset's.")
@click.option("--lora", type=FOLDER, help="The folder of a LoRA (genreward finetune).")
@click.option("--out", type=FOLDER, required=True, help="The mp4 to write; several candidates get their seeds' names.")
@click.option("--overwrite", is_flag=True, help="Replace videos that exist.")
@click.option("--device", default="auto", show_default=True, help=DEVICE_HELP)
@section("The video")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the first candidate; the next ones count on.")
@click.option("--candidates", type=int, default=1, show_default=True, help="Videos to make.")
@click.option("--steps", type=int, default=50, show_default=True, help="Of denoising.")
@click.option("--guidance", type=float, default=6.0, show_default=True, help="Of the text; 1: none, half the work.")
@click.option("--frames", type=int, help="4n + 1.  [default: the model's, 49 for paper]")
@click.option("--size", help="HEIGHTxWIDTH in pixels.  [default: the model's, 480x720 for paper]")
@click.option("--fps", type=float, default=8.0, show_default=True, help="Frames per second of the file.")
@section("Speed; the videos are the same up to rounding")
@click.option("--batch", type=int, default=1, show_default=True, help="Candidates made at once.")
@click.option("--compile", is_flag=True, help="Fuse and compile the transformer.")
@click.option("--attention", default="auto", show_default=True, help="auto, cudnn, flash, efficient or math.")
@section("Speed; the videos change")
@click.option(
    "--approximate",
    default="none",
    show_default=True,
    help="none; first-block: skip steps that change little; or attention-broadcast: reuse it in every second step.",
)
@click.option("--threshold", type=float, default=0.05, show_default=True, help="Of first-block; 0 skips nothing.")
def generate(
    text: str, image: Path, preset: str, model: str | None, lora: Path | None, out: Path, overwrite: bool, device: str,
    size: str | None, fps: float, **settings: Any,
) -> int:  # fmt: skip
    """Make a video of a task from its first frame and a text."""
    from genreward_fast.goals.generate import generate as make_videos
    from genreward_fast.goals.generate import parse_size
    from genreward_fast.goals.generation import GenerationConfig
    from genreward_fast.training.device import resolve_device

    height, width = parse_size(size)
    config = GenerationConfig(height=height, width=width, **settings)
    paths = make_videos(
        text, image, preset, model, lora, out, config, fps=fps, device=resolve_device(device), overwrite=overwrite
    )
    click.echo("\n".join(str(path) for path in paths))
    return 0
