"""`genreward assets`."""

from __future__ import annotations

from pathlib import Path

import click

from genreward_fast.commands.options import DEVICE_HELP, FOLDER, Choices


@click.group()
def assets() -> None:
    """The weights of preset tiny."""


@assets.command()
@click.option("--out", type=FOLDER, required=True, help="Folder of the recordings, checkpoints and weights.")
@click.option(
    "--parts",
    type=Choices(["data", "vae", "dino", "clip", "generator", "check"]),
    default="data,vae,dino,clip,generator,check",
    show_default=True,
    help="Which to build, separated by commas. After data, parts can be built side by side on several GPUs.",
)
@click.option("--minutes", type=float, default=45.0, show_default=True, help="Of a whole build; parts share it.")
@click.option("--device", default="auto", show_default=True, help=DEVICE_HELP)
@click.option("--workers", type=int, help="Processes that record.  [default: one a core]")
@click.option("--resume", is_flag=True, help="Keep recordings that are there, and go on from checkpoints.")
def build(out: Path, parts: tuple[str, ...], minutes: float, device: str, workers: int | None, resume: bool) -> int:
    """Train preset tiny's weights from nothing: record Meta-World's experts, then train each model on that, then
    write what they show on held-out episodes to results/assets.json.

    After Ctrl-C, SIGTERM or a crash, --resume continues.
    """
    from genreward_fast.goals.assets.build import build as build_assets
    from genreward_fast.training.device import resolve_device

    build_assets(out, parts, resolve_device(device), minutes=minutes, resume=resume, workers=workers, say=click.echo)
    return 0
