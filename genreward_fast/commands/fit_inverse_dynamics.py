"""`genreward fit inverse-dynamics`."""

from __future__ import annotations

from typing import Any

import click

from genreward_fast.commands.options import DEVICE_HELP, FOLDER, SectionedCommand


@click.command(cls=SectionedCommand, name="inverse-dynamics")
@click.option("--data", type=FOLDER, required=True, help="Demonstrations with actions (genreward demos).")
@click.option("--out", type=FOLDER, required=True, help="Folder of the result.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in --out, with the same settings.")
@click.option("--size", default="96x96", show_default=True, help="HEIGHTxWIDTH, in the videos' proportions.")
@click.option("--max-gap", type=int, default=4, show_default=True, help="Most steps between two frames of a video.")
@click.option("--channels", type=int, default=32, show_default=True, help="Width of the network.")
@click.option("--steps", type=int, default=20_000, show_default=True, help="Updates in all.")
@click.option("--batch-size", type=int, default=64, show_default=True, help="Pairs of frames in an update.")
@click.option("--lr", type=float, default=3e-4, show_default=True, help="The highest learning rate of Adam.")
@click.option("--held-out", type=float, default=0.1, show_default=True, help="Share of the clips that judges.")
@click.option("--checkpoint-every", type=int, default=1000, show_default=True, help="Steps.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything that is drawn.")
@click.option("--device", default="auto", show_default=True, help=DEVICE_HELP)
def inverse_dynamics(size: str, **settings: Any) -> int:
    """Which action leads from one frame to the next one: what the planner unipi acts by."""
    from genreward_fast.goals.generate import parse_size
    from genreward_fast.training.unipi.fitting import FitConfig, fit_inverse_dynamics

    height, width = parse_size(size)
    config = FitConfig(height=height, width=width, **settings)  # type: ignore[arg-type]
    click.echo("\n".join(fit_inverse_dynamics(config).lines()))
    return 0
