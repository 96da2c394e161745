"""`genreward signal`."""

from __future__ import annotations

from pathlib import Path

import click

from genreward_fast.commands.options import DEVICE_HELP, FOLDER, SectionedCommand, section


@click.command(cls=SectionedCommand)
@click.argument("train_flags", nargs=-1, type=click.UNPROCESSED, metavar="[-- FLAGS OF GENREWARD TRAIN]")
@click.option("--out", type=FOLDER, required=True, help="Folder to write: results, recordings, what is fitted.")
@click.option("--tasks", default="paper", show_default=True, help="all, paper, or names separated by commas.")
@click.option(
    "--rewards",
    default="all",
    show_default=True,
    help="all, or names separated by commas, each with further flags of genreward train behind colons, as in a sweep: "
    "genreward,genreward:no-fb,roboclip:reward-weights=s3d.pth.",
)
@click.option("--goals", type=FOLDER, help="Folder with a goal's folder for each task.  [default: demonstrations]")
@click.option("--device", default="auto", show_default=True, help=DEVICE_HELP)
@click.option("--seed", type=int, default=0, show_default=True, help="Of episodes, weights, and everything drawn.")
@click.option("--json", type=FOLDER, help="Write the table to this file, too, and its picture beside it.")
@click.option("--resume", is_flag=True, help="Keep what --out holds, and measure what is missing.")
@section("The episodes")
@click.option("--data", type=FOLDER, help="Those of genreward assets build, in this folder (its --out).")
@click.option("--record", type=int, help="Record so many of each kind and task to score, as long as an agent's.")
@click.option(
    "--training-episodes",
    type=int,
    default=10,
    show_default=True,
    help="With --record: experts of each task to learn from; of the other kinds, half as many.",
)
@click.option("--every", type=int, default=1, show_default=True, help="With --record: keep every n-th frame.")
@click.option("--after", type=int, help="With --record: steps that experts go on for after success.  [default: all]")
@click.option("--workers", type=int, help="Processes that record.  [default: one a core]")
@section("Learning")
@click.option("--fb-updates", type=int, default=2000, show_default=True, help="Of FB, on the training episodes.")
@click.option("--fit-steps", type=int, default=20_000, show_default=True, help="Updates of each fitted network.")
@click.option("--fit-minutes", type=float, default=5.0, show_default=True, help="For each fitted reward, at most.")
def signal(
    train_flags: tuple[str, ...], out: Path, tasks: str, rewards: str, goals: Path | None, device: str, seed: int,
    json: Path | None, resume: bool, data: Path | None, record: int | None, training_episodes: int, every: int,
    after: int | None, workers: int | None, fb_updates: int, fit_steps: int, fit_minutes: float,
) -> int:  # fmt: skip
    """Measure how well rewards tell held-out expert episodes from half-expert and random ones: a table of AUCs.

    Rewards and encoders are those of genreward train with the flags that follow --. A reward that needs demonstrations
    is fitted to the training experts first, unless its weights are given.

    After Ctrl-C or a crash, --resume continues.
    """
    from genreward_fast.bench.signal.fitted import FitLimits
    from genreward_fast.bench.signal.plan import REWARDS, NewRecordings, Plan
    from genreward_fast.bench.signal.run import run_signal
    from genreward_fast.commands.train import train_settings
    from genreward_fast.envs.tasks import task_list

    new = None if record is None else NewRecordings(record, training_episodes, every, after, workers)
    plan = Plan(
        rewards=REWARDS if rewards == "all" else tuple(dict.fromkeys(rewards.replace(" ", "").split(","))),
        tasks=task_list(tasks),
        out=out,
        data=data,
        new=new,
        goals=goals,
        flags=train_flags,
        fb_updates=fb_updates,
        limits=FitLimits(fit_steps, fit_minutes, seed),
        device=device,
    )
    results = run_signal(plan, train_settings, resume=resume, copy=json, say=lambda line: click.echo(line, err=True))
    click.echo("\n".join([*results.lines(), f"everything is in {results.path}"]))
    return 0
