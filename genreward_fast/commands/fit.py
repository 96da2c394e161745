"""`genreward fit`: a group, because what is fitted has settings of its own."""

from __future__ import annotations

import click

from genreward_fast.commands.fit_inverse_dynamics import inverse_dynamics
from genreward_fast.commands.fit_reward import fit_reward_command


@click.group()
def fit() -> None:
    """Fit to demonstrations what a reward or a planner needs."""


fit.add_command(inverse_dynamics)
for _reward, _text, _presets in (
    ("diffusion-reward", "the codec and the diffusion model of Diffusion Reward", True),
    ("tadpole", "the small text-conditioned diffusion model of frames of TADPoLe", False),
    ("viper", "the codec and the video prediction model of VIPER", True),
):
    fit.add_command(fit_reward_command(_reward, _text, _presets))
