"""`genreward bench`."""

from __future__ import annotations

from typing import Any

import click

from genreward_fast.commands.options import DEVICE_HELP, FOLDER, Choices, SectionedCommand, section


@click.command(cls=SectionedCommand)
@click.option(
    "--what",
    type=Choices(["agent", "vae", "dino", "clip", "fb", "fb-update", "cosine", "env", "reward", "train", "all"]),
    default="agent",
    show_default=True,
    help="The agent's updates; encoders; kernels of the reward (fb, cosine) and FB's learning; environments; the "
    "reward's latency; training as a whole. Or several of them, with commas.",
)
@click.option("--device", default="auto", show_default=True, help=DEVICE_HELP)
@click.option("--seconds", type=float, help="Of measuring, per number.  [default: each benchmark's own]")
@click.option(
    "--json", type=FOLDER, help="Write the numbers to this file (several benchmarks: to files in this folder)."
)
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
@click.option(
    "--preset", type=click.Choice(["paper", "tiny"]), help="Of all but the agent.  [default: paper on a GPU, else tiny]"
)
@section("The encoders (with initial weights)")
@click.option("--batch", type=int, multiple=True, help="Clips (vae) or frames (dino) at once; may be repeated.")
@click.option("--frames", type=int, multiple=True, help="Of a clip (vae) or of a video (clip); may be repeated.")
@click.option("--pixels", type=int, multiple=True, help="Height and width of frames; may be repeated.")
@click.option("--engine", "engines", multiple=True, help="Build and time this engine backend, too; may be repeated.")
@click.option("--skip-compiled", is_flag=True, help="Without torch.compile, which takes minutes.")
@section("The reward, and training as a whole")
@click.option("--vae", help="Hub id or folder of the video VAE.")
@click.option("--dino", help="Hub id or folder of DINOv3.")
@click.option("--weights", type=click.Choice(["pretrained", "random"]), help="random: no trained weights; it says so.")
@click.option(
    "--reward",
    "baselines",
    type=click.Choice(["roboclip", "tadpole", "video-tadpole"]),
    multiple=True,
    help="Time this reward, too, with random weights; may be repeated.",
)
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
