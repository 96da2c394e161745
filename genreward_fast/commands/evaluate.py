"""`genreward eval`."""

from __future__ import annotations

import json as json_module
from pathlib import Path

import click

from genreward_fast.commands.options import DEVICE_HELP, FOLDER, SectionedCommand


@click.command(cls=SectionedCommand, name="eval")
@click.option("--run", "run_folder", type=FOLDER, required=True, help="The run folder (--out of genreward train).")
@click.option("--episodes", type=int, default=20, show_default=True, help="How many episodes.")
@click.option("--envs", type=int, help="Parallel environments.  [default: as in training]")
@click.option("--seed", type=int, help="Of the episodes.  [default: the run's: the same episodes each time]")
@click.option("--device", default="auto", show_default=True, help=DEVICE_HELP)
@click.option("--json", is_flag=True, help="Print JSON instead of a table.")
def evaluate(
    run_folder: Path, episodes: int, envs: int | None, seed: int | None, device: str, json: bool
) -> int:  # fmt: skip
    """Evaluate a trained agent on episodes that training never sees: return, success rate, a video."""
    from genreward_fast.training.start import evaluate_run

    evaluated = evaluate_run(run_folder, episodes, envs, seed, device)
    click.echo(json_module.dumps(evaluated.record(), indent=2) if json else "\n".join(evaluated.lines()))
    return 0
