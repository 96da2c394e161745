"""`genreward eval`."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Any

import click

from genreward_fast.commands.options import DEVICE_HELP, FOLDER, SectionedCommand, section
from genreward_fast.errors import UserError


@click.command(cls=SectionedCommand, name="eval")
@click.option("--run", "run_folder", type=FOLDER, help="The run folder (--out of genreward train).")
@click.option("--policy", type=click.Choice(["unipi"]), help="Evaluate this planner instead of a run.")
@click.option("--episodes", type=int, default=20, show_default=True, help="How many episodes.")
@click.option("--envs", type=int, help="Parallel environments.  [default: as in training; of a planner 1]")
@click.option("--seed", type=int, help="Of the episodes.  [default: the run's: the same episodes each time; or 0]")
@click.option("--device", default="auto", show_default=True, help=DEVICE_HELP)
@click.option("--json", is_flag=True, help="Print JSON instead of a table.")
@section("The planner")
@click.option("--task", help="Meta-World task.")
@click.option("--inverse-dynamics", type=FOLDER, help="Folder (genreward fit inverse-dynamics).")
@click.option("--out", type=FOLDER, help="Folder to write: evaluation.json and videos.")
@click.option("--preset", help="Whose video model: paper (CogVideoX-5B-I2V) or tiny.  [default: paper]")
@click.option("--video-model", "--model", help="Hub id or folder of a CogVideoX image-to-video model instead.")
@click.option("--lora", type=FOLDER, help="The folder of a LoRA (genreward finetune).")
@click.option("--text", help="The task in words.  [default: its description]")
@click.option("--denoising-steps", type=int, help="Of a video.  [default: 50]")
@click.option("--guidance", type=float, help="Of the text; 1: none, half the work.  [default: 6]")
@click.option("--goal", type=FOLDER, help="Follow the video of this goal (genreward goal), and generate none.")
@click.option("--plan-steps", type=int, help="Steps that a video spans.  [default: as the task's demonstrations]")
@click.option("--replan", type=int, help="Make a new plan every so many steps.  [default: one an episode]")
def evaluate(
    run_folder: Path | None, policy: str | None, episodes: int, envs: int | None, seed: int | None, device: str,
    json: bool, **planner: Any,
) -> int:  # fmt: skip
    """Evaluate an agent or a planner on episodes that training never sees: return, success rate, a video."""
    given = {name: value for name, value in planner.items() if value is not None}
    if (run_folder is None) == (policy is None):
        raise UserError("give either --run (the folder of a trained agent) or --policy unipi")
    if run_folder is not None:
        from genreward_fast.training.start import evaluate_run

        if given:
            raise UserError(f"--{next(iter(given)).replace('_', '-')}: goes with --policy unipi, not with --run")
        evaluated = evaluate_run(run_folder, episodes, envs, seed, device)
    else:
        from genreward_fast.training.unipi.start import UniPiConfig, evaluate_unipi

        for name in ("task", "inverse_dynamics", "out"):
            if name not in given:
                raise UserError(f"--policy unipi: needs --{name.replace('_', '-')}")
        given |= {"episodes": episodes, "envs": 1 if envs is None else envs, "seed": seed or 0}
        evaluated = evaluate_unipi(UniPiConfig(**given, device=device))
    click.echo(json_module.dumps(evaluated.record(), indent=2) if json else "\n".join(evaluated.lines()))
    return 0
