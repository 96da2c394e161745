"""`genreward bench`."""

from __future__ import annotations

from typing import Any

import click

from genreward_fast.commands.options import DEVICE_HELP, FOLDER, SectionedCommand, section


@click.command(cls=SectionedCommand)
@click.option(
    "--what",
    type=click.Choice(["agent", "fb", "cosine", "env", "reward", "train", "all"]),
    default="agent",
    show_default=True,
    help="The agent's updates; the kernels of the reward; environments; the reward's latency; training as a whole.",
)
@click.option("--device", default="auto", show_default=True, help=DEVICE_HELP)
@click.option("--seconds", type=float, help="Of measuring, per number.  [default: each benchmark's own]")
@click.option("--json", type=FOLDER, help="Write the numbers to this file (with --what all: to files in this folder).")
@click.option(
    "--envs",
    type=int,
    multiple=True,
    help="Environments; may be given several times, of which the agent takes the largest.  "
    "[default: agent 16; train 1, 4, 16; reward 1, 4, 16, 64]",
)
@click.option(
    "--train-ratio", type=float, default=512, show_default=True, help="Rows replayed per step, in agent and train."
)
@click.option("--skip-environments", is_flag=True, help="Agent and reward without the real environment.")
@section("The reward, and training as a whole")
@click.option("--preset", default="tiny", show_default=True, help="tiny, or paper (full-size encoders: a GPU).")
@click.option("--vae", help="Hub id or folder of the video VAE.")
@click.option("--dino", help="Hub id or folder of DINOv3.")
@click.option("--weights", type=click.Choice(["pretrained", "random"]), help="random: no trained weights; it says so.")
@click.option("--steps", type=int, help="Training: environment steps.  [default: an episode of every environment]")
@click.option("--trace", type=FOLDER, help="Training: write a profiler's trace of a few ticks to this .json file.")
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
@click.option("--skip-plain", is_flag=True, help="Ours with CUDA graphs only.")
@click.option("--skip-cold-start", is_flag=True, help="Keep the compilers' caches, and start once.")
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
