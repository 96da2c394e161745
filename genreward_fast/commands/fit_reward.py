"""`genreward fit NAME` for rewards: one command each, with the same options."""

from __future__ import annotations

import math
from typing import Any

import click

from genreward_fast.commands.options import DEVICE_HELP, FOLDER


def fit_reward_command(reward: str, what: str, presets: bool = True) -> click.Command:
    """The command that fits a reward.

    Args:
        reward: one of `genreward_fast.rewards.fitting.FITTERS`.
        what: what is fitted, in words.
        presets: whether there are networks of several sizes.
    """

    @click.command(reward, short_help=f"Fit {what}.")
    @click.option("--data", type=FOLDER, required=True, help="Demonstrations (genreward demos, LeRobot, videos).")
    @click.option("--out", type=FOLDER, required=True, help="Folder of the result, for --reward-weights.")
    @click.option("--steps", type=int, default=20_000, show_default=True, help="Updates of each network.")
    @click.option("--minutes", type=float, default=math.inf, help="Of each network's training, at most.")
    @click.option("--batch-size", type=int, default=32, show_default=True, help="Examples in an update.")
    @click.option("--lr", type=float, default=3e-4, show_default=True, help="Learning rate of AdamW.")
    @click.option("--seed", type=int, default=0, show_default=True, help="Of the weights, and of everything drawn.")
    @click.option("--device", default="auto", show_default=True, help=DEVICE_HELP)
    @click.option("--resume", is_flag=True, help="Continue in --out from its checkpoint.")
    def command(device: str, **settings: Any) -> int:
        from genreward_fast.rewards.fitting import FitConfig, fit
        from genreward_fast.training.device import resolve_device

        result = fit(FitConfig(reward, device=resolve_device(device), **settings))
        click.echo("\n".join(result.lines))
        return 0

    if presets:
        text = "Networks of the published sizes (paper), or tiny."
        command.params.append(click.Option(["--preset"], default="paper", show_default=True, help=text))
    command.help = (
        f"Fit {what} to demonstrations.\n\nAfter Ctrl-C, SIGTERM or a crash, the same command with --resume continues "
        "from the last checkpoint."
    )
    return command
