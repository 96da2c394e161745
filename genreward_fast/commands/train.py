"""`genreward train`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import click

from genreward_fast.commands.options import DEVICE_HELP, FOLDER, SectionedCommand, encoder_weights, section
from genreward_fast.errors import UserError


@click.command(cls=SectionedCommand)
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
@click.option(
    "--engine",
    help="What runs the encoders: torch; a backend's name (tensorrt, aotinductor …: built once, then cached); a file "
    "or folder of genreward export; auto: on a GPU the fastest, for which the first run builds all.  [default: torch]",
)
@click.option("--out", type=FOLDER, help="The run folder.  [default: runs/TASK-PRESET-DATE]")
@click.option(
    "--resume", is_flag=True, help="Continue the run in --out from its checkpoint (from step 0 if it has none yet)."
)
@section("Reward")
@click.option("--reward", help="genreward, roboclip, tadpole, video-tadpole, or none for the environment's alone.")
@click.option("--reward-weights", help="Hub id, file or folder of what roboclip or tadpole needs (docs/rewards).")
@click.option("--reward-scale", type=float, help="Weight of roboclip or tadpole.  [default: 1]")
@click.option(
    "--roboclip-goal", type=click.Choice(["video", "text"]), help="Whether the goal's video or its words count."
)
@click.option(
    "--roboclip-byte-pixels/--no-roboclip-byte-pixels", default=None, help="Pixels from 0 to 255, as published."
)
@click.option("--motion-adapter", help="video-tadpole: hub id or folder of AnimateDiff's motion modules.")
@click.option("--env-reward", type=click.Choice(["dense", "sparse", "none"]), help="What the environment pays.")
@click.option("--alpha", type=float, help="Weight α of the video level (a cosine).")
@click.option("--beta", type=float, help="Weight β of the frame level (standardised).")
@click.option("--credit", type=click.Choice(["closing", "spread"]), help="Pay a window's last row, or all its rows.")
@click.option("--window", type=int, help="Steps that are compared with the goal video.")
@click.option("--interval", type=int, help="Steps from one window's end to the next one's.")
@click.option("--clip-frames", type=int, help="Frames of a window that the video encoder sees.")
@click.option("--fb-steps", type=int, help="Environment steps during which FB learns; then it is frozen and pays.")
@click.option(
    "--fb-next-action", type=click.Choice(["replay", "policy"]), help="FB follows the replay's actions, or an actor's."
)
@click.option("--fb-standardise/--no-fb-standardise", default=None, help="Whether FB sees standardised features.")
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
@click.option(
    "--overlap/--no-overlap", default=None, help="Encode windows beside the updates, on CUDA.  [default: before them]"
)
@click.option("--release-delay", type=int, help="Steps from a window's end until its rows may be sampled.")
@section("Environment")
@click.option("--camera", help="corner, corner2, corner3, corner4, topview, behindGripper or gripperPOV.")
@click.option("--episode-length", type=int, help="Steps in an episode, action repeats counted.")
@click.option("--action-repeat", type=int, help="Times that each action is applied.")
@click.option(
    "--rendering", type=click.Choice(["fast", "quality"]), help="fast: no shadows, reflections, multisampling."
)
@section("Encoders")
@encoder_weights
@section("Looking at it")
@click.option("--eval-every", type=int, help="Steps between evaluations (0: only at the end).")
@click.option("--eval-episodes", type=int, help="Episodes in an evaluation.")
@click.option("--log-every", type=int, help="Updates between two readings of the metrics.")
@click.option("--checkpoint-minutes", type=float, help="Minutes between checkpoints.")
def train(
    preset: str | None, goal: Path | None, out: Path | None, resume: bool, no_video: bool, no_fb: bool,
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
    summary = start_run(config, out, goal=goal, resume=resume)
    click.echo("\n".join([*summary.lines(), f"everything is in {out}"]))
    return 0
