"""`genreward train`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genreward_fast.commands.options import DEVICE_HELP, FOLDER, Choices, SectionedCommand, encoder_weights, section
from genreward_fast.errors import UserError

if TYPE_CHECKING:  # torch takes seconds to import
    from genreward_fast.config import Overrides
    from genreward_fast.training.settings import RunConfig

DEFAULT_PRESET = "tiny"


@click.command(cls=SectionedCommand)
@section("The run")
@click.option(
    "--task",
    help="A task of Meta-World (pick-place, pick-place-v3) or dm_control (walker-walk).  [default: pick-place]",
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
@click.option(
    "--reward",
    help="genreward, diffusion-reward, viper, roboclip, tadpole, video-tadpole, or none for the environment's alone.",
)
@click.option(
    "--reward-weights", help="Hub id, file or folder of what a reward other than genreward needs (docs/rewards)."
)
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
@click.option(
    "--video-centred/--no-video-centred",
    default=None,
    help="Compare how clips move: latents without their means over time.",
)
@click.option("--no-video", is_flag=True, help="Ablation: leave the video level out.")
@click.option("--no-fb", is_flag=True, help="Ablation: leave the frame level out.")
@click.option(
    "--exploration", type=float, help="diffusion-reward, viper: weight of a bonus for new frames.  [default: 0.95, 0]"
)
@section("Agent")
@click.option("--size", help="tiny, 12M, 25M, 50M, 100M, 200M or 400M.")
@click.option("--batch-size", type=int, help="Sequences in an update.")
@click.option("--batch-length", type=int, help="Rows in each of them.")
@click.option("--lr", type=float, help="Learning rate of the agent.")
@click.option("--warmup", type=int, help="Updates over which it rises from 0.")
@click.option("--train-ratio", type=float, help="Rows replayed per environment step.")
@click.option("--prefill", type=int, help="Steps of random actions at the start.")
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), help="Of the agent's computation.")
@click.option("--replay-capacity", type=int, help="Rows kept.")
@click.option(
    "--overlap/--no-overlap",
    default=None,
    help="On CUDA, do the reward's work beside the agent's updates, or before them.  [default: beside]",
)
@click.option(
    "--overlap-multiprocessors",
    type=int,
    help="So many of the GPU's encode windows then; 0 for all.  [default: three tenths]",
)
@click.option(
    "--release-delay", type=int, help="Steps from a window's end until its rows may be sampled.  [default: 64 × --envs]"
)
@section("Environment")
@click.option(
    "--camera",
    help="Meta-World: corner, corner2, corner3, corner4, topview, behindGripper or gripperPOV; dm_control: a camera of "
    "the task's model.",
)
@click.option("--episode-length", type=int, help="Steps in an episode, action repeats counted.")
@click.option("--action-repeat", type=int, help="Times that each action is applied.")
@click.option(
    "--rendering", type=click.Choice(["fast", "quality"]), help="fast: no shadows, reflections, multisampling."
)
@click.option(
    "--distraction", type=click.Choice(["none", "easy", "medium", "hard"]), help="dm_control: how much distracts."
)
@click.option(
    "--distraction-types",
    type=Choices(["color", "camera", "background"]),
    help="dm_control: which distractions, separated by commas.  [default: all]",
)
@click.option(
    "--dynamic-distractions/--static-distractions",
    default=None,
    help="dm_control: they change on every step, or with every episode.  [default: with every episode]",
)
@click.option(
    "--backgrounds", help="dm_control: a folder of videos or images (DAVIS 2017).  [default: procedural ones]"
)
@section("Encoders")
@encoder_weights
@click.option(
    "--vae-float8/--no-vae-float8", default=None, help="The video encoder's products in float8: faster, less exact."
)
@section("Looking at it")
@click.option("--eval-every", type=int, help="Steps between evaluations (0: only at the end).")
@click.option("--eval-episodes", type=int, help="Episodes in an evaluation.")
@click.option("--log-every", type=int, help="Updates between two readings of the metrics.")
@click.option("--checkpoint-minutes", type=float, help="Minutes between checkpoints.")
def train(preset: str | None, goal: Path | None, out: Path | None, resume: bool, **flags: Any) -> int:
    """Train an agent online, from pixels, with the environment's reward plus a generated one.

    After Ctrl-C, SIGTERM or a crash, --resume continues from the last checkpoint.

    A flag that is not given takes the preset's value; the resolved settings are in the run folder's config.json.
    """
    from genreward_fast.config import resolve, resume_config
    from genreward_fast.training.start import start_run

    if resume:
        if out is None:
            raise UserError("--resume needs --out: the folder of the run to continue")
        config = resume_config(out, preset, _overrides(**flags))
    else:
        config = resolve(preset or DEFAULT_PRESET, _overrides(**flags))
        out = out or Path("runs") / f"{config.env.task}-{config.preset}-{datetime.now():%Y%m%d-%H%M%S}"
    summary = start_run(config, out, goal=goal, resume=resume)
    click.echo("\n".join([*summary.lines(), f"everything is in {out}"]))
    return 0


def train_settings(arguments: Sequence[str]) -> RunConfig:
    """What a command line of a new `genreward train` asks for.

    Raises:
        UserError: it is bad.
    """
    from genreward_fast.config import resolve

    try:
        flags = train.make_context("genreward train", list(arguments)).params
    except click.ClickException as error:
        raise UserError(f"{' '.join(arguments)}: {error.format_message()} See genreward train --help.") from None
    for name in ("goal", "out", "resume"):
        del flags[name]
    return resolve(flags.pop("preset") or DEFAULT_PRESET, _overrides(**flags))


def _overrides(*, no_video: bool, no_fb: bool, **flags: Any) -> Overrides:
    from genreward_fast.config import Overrides

    return Overrides(use_video=False if no_video else None, use_fb=False if no_fb else None, **flags)
