"""`genreward goal`."""

from __future__ import annotations

from typing import Any

import click

from genreward_fast.commands.options import DEVICE_HELP, FOLDER, SectionedCommand


@click.command(cls=SectionedCommand)
@click.option("--out", type=FOLDER, required=True, help="Folder to write.")
@click.option("--task", help="A task of Meta-World: a goal for one of its starts.")
@click.option(
    "--show",
    type=click.Choice(["auto", "generated", "expert"]),
    default="auto",
    show_default=True,
    help="With --task: a video that the shipped model generates from the first frame, or the scripted expert's episode "
    "up to its first success. auto: generated in preset tiny, for the camera and rendering that the model knows.",
)
@click.option("--video", type=FOLDER, help="A video file to take instead.")
@click.option("--text", help="The task in words.  [default with --task: its description]")
@click.option(
    "--frame",
    default="auto",
    show_default=True,
    help="auto (OpenCLIP chooses; last while it is untrained), clip, last, or a number.",
)
@click.option("--preset", default="tiny", show_default=True, help="Whose OpenCLIP chooses: tiny or paper.")
@click.option("--clip", help="Hub id, folder or checkpoint of OpenCLIP, instead of the preset's.")
@click.option(
    "--weights", type=click.Choice(["pretrained", "random"]), help="random: no trained weights, to benchmark."
)
@click.option("--camera", help="Meta-World's camera, with --task: the one that the agent will see through.")
@click.option("--rendering", type=click.Choice(["fast", "quality"]), help="As the agent will be trained, with --task.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of the start (and of the generated video), with --task."
)
@click.option("--device", help=DEVICE_HELP)
@click.option("--overwrite", is_flag=True, help="Replace a goal that is already in --out.")
def goal(
    preset: str, task: str | None, camera: str | None, rendering: str | None, clip: str | None, weights: str | None,
    device: str | None, **request: Any,
) -> int:  # fmt: skip
    """Make a goal: take a video, generate one, or let a scripted expert show it; choose the goal frame, draw the
    contact sheet.
    """
    from genreward_fast.config import Overrides, resolve
    from genreward_fast.training.start import make_goal

    overrides = Overrides(task=task, camera=camera, rendering=rendering, clip=clip, weights=weights, device=device)
    config = resolve(preset, overrides)
    click.echo("\n".join(make_goal(config, task=task, **request)))
    return 0
