"""`genreward sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from genreward_fast.commands.options import FOLDER, SectionedCommand, section


@click.command(cls=SectionedCommand)
@click.argument("train_flags", nargs=-1, type=click.UNPROCESSED, metavar="[-- FLAGS OF GENREWARD TRAIN]")
@section("The grid")
@click.option("--tasks", help="all, paper, or names separated by commas.  [default: pick-place]")
@click.option(
    "--rewards",
    help="Names separated by commas, each with further flags of genreward train behind colons: "
    "none,genreward,genreward:no-video,genreward:alpha=3.  [default: genreward]",
)
@click.option("--env-rewards", help="dense, sparse, none; a reward with :env-reward=… keeps its own.  [default: dense]")
@click.option("--seeds", help="Whole numbers, separated by commas.  [default: 0]")
@click.option("--goals", type=FOLDER, help="Folder with a goal's folder for each task, named after it.")
@section("The machines")
@click.option("--ray", help="auto, or HOST:PORT of a running Ray cluster.  [default: this machine alone]")
@click.option("--local", is_flag=True, help="This machine alone, without Ray.")
@click.option("--gpus", type=int, help="Of this machine that may be used.  [default: all]")
@click.option(
    "--gpus-per-trial", type=float, help="Or a fraction, for several on one GPU.  [default: 1 if there are any]"
)
@click.option("--cpus-per-trial", type=float, help="Cores.  [default: 1 beside a GPU, else 2]")
@section("The sweep")
@click.option("--retries", type=int, default=2, show_default=True, help="Of a trial that failed, from its checkpoint.")
@click.option("--limit", type=float, help="Seconds; then all trials stop with a checkpoint.  [default: none]")
@click.option("--out", type=FOLDER, required=True, help="Folder to write; all machines must see it.")
@click.option("--resume", is_flag=True, help="Go on with the sweep in --out, whose grid need not be given again.")
def sweep(
    train_flags: tuple[str, ...], ray: str | None, local: bool, gpus: int | None, gpus_per_trial: float | None,
    cpus_per_trial: float | None, retries: int, limit: float | None, out: Path, resume: bool, **grid: Any,
) -> int:  # fmt: skip
    """Train tasks × rewards × seeds, each run as genreward train would, on one machine or a Ray cluster.

    What follows -- goes to every run: genreward sweep --tasks paper --seeds 0,1 --out sweeps/a -- --preset paper.

    A trial that fails is tried again from its checkpoint; after Ctrl-C or a crash, --resume goes on. Exit code 1 says
    that a trial has failed for good.
    """
    from genreward_fast.commands.train import train_settings
    from genreward_fast.training.sweep.grid import parse_grid
    from genreward_fast.training.sweep.places import Places
    from genreward_fast.training.sweep.start import run_sweep

    places = Places(ray, local, gpus, gpus_per_trial, cpus_per_trial)
    given = parse_grid(flags=train_flags, **grid)
    result = run_sweep(given, out, settings=train_settings, places=places, retries=retries, limit=limit, resume=resume)
    click.echo("\n".join(result.lines()))
    return 1 if result.failed else 0
