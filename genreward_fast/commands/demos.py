"""`genreward demos`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from genreward_fast.commands.options import FOLDER, SectionedCommand


@click.command(cls=SectionedCommand)
@click.option("--out", type=FOLDER, required=True, help="Folder to write.")
@click.option("--tasks", default="all", show_default=True, help="all, paper, or names separated by commas.")
@click.option("--episodes", type=int, default=20, show_default=True, help="Clips of each task.")
@click.option("--camera", default="corner", show_default=True, help="Meta-World's camera.")
@click.option("--size", type=int, default=480, show_default=True, help="Side of the frames in pixels, even.")
@click.option(
    "--rendering",
    type=click.Choice(["fast", "quality"]),
    default="fast",
    show_default=True,
    help="As the agent will be trained.",
)
@click.option("--fps", type=float, default=80.0, show_default=True, help="Frames per second; 80 is the simulator's.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the starts.")
@click.option("--workers", type=int, default=1, show_default=True, help="Processes that collect at once.")
@click.option("--resume", is_flag=True, help="Go on with the set in --out, or add tasks and episodes to it.")
def demos(out: Path, tasks: str, workers: int, resume: bool, **settings: Any) -> int:
    """Collect demonstrations: scripted experts solving Meta-World's tasks, as captioned videos to fine-tune on."""
    from genreward_fast.envs.tasks import task_list
    from genreward_fast.goals.demo_collect import Collection, collect

    click.echo("\n".join(collect(Collection(task_list(tasks), **settings), out, resume=resume, workers=workers)))
    return 0
