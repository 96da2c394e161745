"""`genreward export`."""

from __future__ import annotations

from typing import Any

import click

from genreward_fast.commands.options import DEVICE_HELP, FOLDER, SectionedCommand, encoder_weights, section


@click.command(cls=SectionedCommand)
@click.option(
    "--encoder",
    type=click.Choice(["vae", "dino", "clip", "all"]),
    default="all",
    show_default=True,
    help="The video encoder, the image encoder, the image tower that picks goal frames, or all three.",
)
@click.option("--preset", default="tiny", show_default=True, help="Whose encoders: tiny or paper.")
@click.option("--backend", required=True, help="tensorrt, tensorrt-rtx, aotinductor or onnxruntime.")
@click.option("--out", type=FOLDER, required=True, help="Folder for the engine files.")
@click.option("--for", "hardware", help="sm_89 and the like: a GPU that is not in this machine.  [default: --device]")
@click.option("--device", help=DEVICE_HELP)
@click.option("--overwrite", is_flag=True, help="Replace an engine in --out that differs from the one asked for.")
@section("What they take")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="[default: float32; on a GPU float16, clip float32]",
)
@click.option("--max-batch", type=int, help="Clips or frames at once; more are split.  [default: vae 4, others 64]")
@click.option("--clip-frames", type=int, help="Frames of a window that the video encoder sees, as for training.")
@section("Weights")
@encoder_weights
def export(
    preset: str, device: str | None, clip_frames: int | None, vae: str | None, dino: str | None, clip: str | None,
    weights: str | None, **request: Any,
) -> int:  # fmt: skip
    """Build engines of the encoders, for this machine or another, that genreward train --engine can use."""
    from genreward_fast.config import Overrides, resolve
    from genreward_fast.encoders.export_engines import export_engines, table
    from genreward_fast.training.device import resolve_device
    from genreward_fast.training.start import say

    overrides = Overrides(device=device, clip_frames=clip_frames, vae=vae, dino=dino, clip=clip, weights=weights)
    config = resolve(preset, overrides)
    exported = export_engines(config.clip_encoders, device=resolve_device(config.train.device), say=say, **request)
    click.echo("\n".join(table(exported)))
    return 0
