"""The command line: flags into calls, no logic of its own. Modules that import torch are imported inside commands.

Click, rather than a library that makes flags out of nested dataclasses: the flags keep the names that are documented
however the settings are grouped, a flag that was not given can be told from one that was (presets, `--resume`), and
`--help` imports nothing heavy.
"""

from __future__ import annotations

import json as json_module
import os
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from genreward_fast import __version__
from genreward_fast.cli_options import SectionedCommand, section
from genreward_fast.errors import Interrupted, RunFailed, UserError

FOLDER = click.Path(path_type=Path)
DEVICE_HELP = "auto, cpu, cuda or cuda:N."


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, message="%(version)s")
def genreward() -> None:
    """Train robot agents with rewards out of a goal video.

    Bad input is answered in one line with exit code 2.
    """


@genreward.command(cls=SectionedCommand)
@click.option("--json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--quiet", is_flag=True, help="Print only what keeps training from running.")
def doctor(json: bool, quiet: bool) -> int:
    """Say what works on this machine.

    The exit code is 0 if `genreward train` can run, and 1 if it cannot.
    """
    from genreward_fast.doctor import report_lines, run_checks

    checks = run_checks()
    broken = [check for check in checks if check.required and not check.ok]
    if json:
        click.echo(json_module.dumps({"ok": not broken, "checks": [asdict(c) for c in checks]}, indent=2))
    elif quiet:
        click.echo("".join(line + "\n" for line in report_lines(broken)), nl=False)
    else:
        verdict = "genreward train cannot run here yet" if broken else "genreward train can run here"
        click.echo("\n".join([*report_lines(checks), "", verdict]))
    return 1 if broken else 0


@genreward.command(cls=SectionedCommand)
@section("The run")
@click.option(
    "--task", help="A Meta-World task, by any of its names: pick-place, pick-place-v3.  [default: pick-place]"
)
@click.option("--preset", help="tiny (two CPU cores, minutes) or paper (full-size encoders: a GPU).  [default: tiny]")
@click.option("--goal", type=FOLDER, help="A goal's folder (genreward goal).  [default: one from a scripted expert]")
@click.option("--steps", type=int, help="Environment steps, summed over the environments.")
@click.option("--minutes", type=float, help="End training after this time at the latest; an evaluation follows.")
@click.option("--envs", type=int, help="Parallel environments, one process each.")
@click.option("--seed", type=int, help="Of everything that is drawn; evaluation has seeds of its own.")
@click.option("--device", help=DEVICE_HELP)
@click.option("--engine", default="auto", help="What runs the encoders: torch, or auto for the fastest there is.")
@click.option("--out", type=FOLDER, help="The run folder.  [default: runs/TASK-PRESET-DATE]")
@click.option(
    "--resume", is_flag=True, help="Continue the run in --out from its checkpoint (from step 0 if it has none yet)."
)
@section("Reward")
@click.option("--reward", help="genreward, or none for the environment's reward alone.")
@click.option("--env-reward", type=click.Choice(["dense", "sparse", "none"]), help="What the environment pays.")
@click.option("--alpha", type=float, help="Weight α of the video level (a cosine).")
@click.option("--beta", type=float, help="Weight β of the frame level (standardised).")
@click.option("--credit", type=click.Choice(["closing", "spread"]), help="Pay a window's last row, or all its rows.")
@click.option("--window", type=int, help="Steps that are compared with the goal video.")
@click.option("--interval", type=int, help="Steps from one window's end to the next one's.")
@click.option("--clip-frames", type=int, help="Frames of a window that the video encoder sees.")
@click.option("--fb-steps", type=int, help="Environment steps during which FB learns; then it is frozen and pays.")
@click.option("--no-video", is_flag=True, help="Ablation: leave the video level out.")
@click.option("--no-fb", is_flag=True, help="Ablation: leave the frame level out.")
@section("Agent")
@click.option("--size", help="tiny, 12M, 25M, 50M, 100M, 200M or 400M.")
@click.option("--batch-size", type=int, help="Sequences in an update.")
@click.option("--batch-length", type=int, help="Rows in each of them.")
@click.option("--train-ratio", type=float, help="Rows replayed per environment step.")
@click.option("--prefill", type=int, help="Steps of random actions at the start.")
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), help="Of the agent's computation.")
@click.option("--replay-capacity", type=int, help="Rows kept.")
@click.option("--release-delay", type=int, help="Steps from a window's end until its rows may be sampled.")
@section("Environment")
@click.option("--camera", help="corner, corner2, corner3, corner4, topview, behindGripper or gripperPOV.")
@click.option("--episode-length", type=int, help="Steps in an episode, action repeats counted.")
@click.option("--action-repeat", type=int, help="Times that each action is applied.")
@click.option(
    "--rendering", type=click.Choice(["fast", "quality"]), help="fast: no shadows, reflections, multisampling."
)
@section("Encoders")
@click.option("--vae", help="Hub id or folder of the video VAE.")
@click.option("--dino", help="Hub id or folder of DINOv3.")
@click.option("--clip", help="Hub id, folder or checkpoint of OpenCLIP.")
@click.option(
    "--weights", type=click.Choice(["pretrained", "random"]), help="random: no trained weights, to benchmark."
)
@section("Looking at it")
@click.option("--eval-every", type=int, help="Steps between evaluations (0: only at the end).")
@click.option("--eval-episodes", type=int, help="Episodes in an evaluation.")
@click.option("--log-every", type=int, help="Updates between two readings of the metrics.")
@click.option("--checkpoint-minutes", type=float, help="Minutes between checkpoints.")
def train(
    preset: str | None, goal: Path | None, engine: str, out: Path | None, resume: bool, no_video: bool, no_fb: bool,
    **flags: Any,
) -> int:  # fmt: skip
    """Train an agent online, from pixels, with the environment's reward plus a generated one.

    After Ctrl-C, SIGTERM or a crash, --resume continues from the last checkpoint.

    A flag that is not given takes the preset's value; the resolved settings are in the run folder's config.json.
    """
    from genreward_fast.config import Overrides, resolve, resume_config
    from genreward_fast.training.start import start_run

    flags |= {"use_video": False if no_video else None, "use_fb": False if no_fb else None}
    if resume:
        if out is None:
            raise UserError("--resume needs --out: the folder of the run to continue")
        config = resume_config(out, preset, Overrides(**flags))
    else:
        config = resolve(preset or "tiny", Overrides(**flags))
        out = out or Path("runs") / f"{config.env.task}-{config.preset}-{datetime.now():%Y%m%d-%H%M%S}"
    summary = start_run(config, out, goal=goal, resume=resume, engine=engine)
    click.echo("\n".join([*summary.lines(), f"everything is in {out}"]))
    return 0


@genreward.command(cls=SectionedCommand, name="eval")
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


@genreward.command(cls=SectionedCommand)
@click.option("--out", type=FOLDER, required=True, help="Folder to write.")
@click.option("--task", help="A task whose scripted expert shows the goal: an episode up to its first success.")
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
@click.option("--seed", type=int, default=0, show_default=True, help="Of the expert's episode, with --task.")
@click.option("--device", help=DEVICE_HELP)
@click.option("--overwrite", is_flag=True, help="Replace a goal that is already in --out.")
def goal(
    preset: str, task: str | None, camera: str | None, rendering: str | None, clip: str | None, weights: str | None,
    device: str | None, **request: Any,
) -> int:  # fmt: skip
    """Make a goal from a video or from a scripted expert: choose the goal frame, draw the contact sheet."""
    from genreward_fast.config import Overrides, resolve
    from genreward_fast.training.start import make_goal

    overrides = Overrides(task=task, camera=camera, rendering=rendering, clip=clip, weights=weights, device=device)
    config = resolve(preset, overrides)
    click.echo("\n".join(make_goal(config, task=task, **request)))
    return 0


@genreward.command(cls=SectionedCommand)
@click.option(
    "--what",
    type=click.Choice(["agent", "fb", "cosine", "env", "all"]),
    default="agent",
    show_default=True,
    help="The agent's updates; the kernels of the reward; environments.",
)
@click.option("--device", default="auto", show_default=True, help=DEVICE_HELP)
@click.option("--seconds", type=float, help="Of measuring, per number.  [default: each benchmark's own]")
@click.option("--json", type=FOLDER, help="Write the numbers to this file (with --what all: to files in this folder).")
@section("The agent")
@click.option("--size", "sizes", multiple=True, default=("12M",), show_default=True, help="May be given several times.")
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float32"]),
    default="bfloat16",
    show_default=True,
    help="What ours computes in.",
)
@click.option("--batch-size", type=int, default=16, show_default=True, help="Sequences in an update.")
@click.option("--batch-length", type=int, default=64, show_default=True, help="Rows in each of them.")
@click.option("--imagination", type=int, default=15, show_default=True, help="Steps imagined from every row.")
@click.option("--envs", type=int, default=16, show_default=True, help="Environments, for steps per second.")
@click.option("--train-ratio", type=float, default=512, show_default=True, help="Rows replayed per step.")
@click.option("--skip-plain", is_flag=True, help="Ours with CUDA graphs only.")
@click.option("--skip-cold-start", is_flag=True, help="Keep the compilers' caches, and start once.")
@click.option("--skip-environments", is_flag=True, help="No steps per second with the real environment.")
@section("Other agents, in the same comparison")
@click.option("--r2dreamer", type=FOLDER, help="A checkout of github.com/NM512/r2dreamer.")
@click.option("--dreamerv3-torch", type=FOLDER, help="A checkout of github.com/NM512/dreamerv3-torch.")
@click.option(
    "--torchrl", is_flag=False, flag_value="", default=None, help="The installed TorchRL, or a checkout of it."
)
@click.option(
    "--compile-minutes",
    type=float,
    default=10,
    show_default=True,
    help="For another agent's torch.compile; then it runs eagerly.",
)
def bench(**options: Any) -> int:  # fmt: skip
    """Measure speed on this machine, beside the hardware's limit and beside other implementations.

    Under torchrun the agent's updates are timed in all processes together (data parallelism).
    """
    from genreward_fast.bench.run import run_benchmarks

    run_benchmarks(**options)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Runs a command.

    Returns:
        0; 2 for bad input; 1 for a run that failed, or a machine that cannot train; 128 + n after signal n.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        return genreward.main(arguments, prog_name="genreward", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 2
    except click.ClickException as error:
        click.echo(f"genreward: {' '.join(error.format_message().split())} See genreward --help.", err=True)
        return 2
    except UserError as error:
        click.echo(f"genreward: {error}", err=True)
        return 2
    except RunFailed as error:
        click.echo(f"genreward: {error}", err=True)
        return 1
    except OSError as error:  # no space left, no permission: checkpoints are whole or not there
        if error.filename is None:
            raise
        click.echo(f"genreward: {error.filename}: {error.strerror}", err=True)
        return 1
    except Interrupted as stop:
        click.echo(f"genreward: {stop}", err=True)
        return stop.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("genreward: interrupted", err=True)
        return 130


if __name__ == "__main__":
    sys.exit(main())
