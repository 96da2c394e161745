"""`genreward fit`: a group, because what is fitted has settings of its own."""

from __future__ import annotations

import click

from genreward_fast.commands.fit_inverse_dynamics import inverse_dynamics


@click.group()
def fit() -> None:
    """Fit to demonstrations what a reward or a planner needs."""


fit.add_command(inverse_dynamics)
