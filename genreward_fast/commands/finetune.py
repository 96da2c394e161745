"""`genreward finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from genreward_fast.commands.options import DEVICE_HELP, FOLDER, SectionedCommand, section
from genreward_fast.errors import UserError


@click.command(cls=SectionedCommand)
@click.option(
    "--data", type=FOLDER, required=True, help="Demonstrations (genreward demos, LeRobot, videos), or their latents."
)
@click.option("--latents", type=FOLDER, help="Where demonstrations are kept once encoded.  [default: latents in --out]")
@click.option("--camera", help="Of a LeRobot dataset with several cameras.  [default: the first]")
@click.option("--preset", default="paper", show_default=True, help="Whose model: paper (CogVideoX-5B-I2V) or tiny.")
@click.option("--model", help="Hub id or folder of a CogVideoX image-to-video model, instead of the preset's.")
@click.option("--out", type=FOLDER, required=True, help="Folder of the run and its result.")
@click.option("--resume", is_flag=True, help="Continue the run in --out from its checkpoint, with its settings.")
@click.option("--device", default="auto", show_default=True, help=DEVICE_HELP)
@section("What is trained")
@click.option("--lora-rank", type=int, help="Of the adapters.  [default: 128]")
@click.option("--full", is_flag=True, help="Train all weights instead of adapters.")
@click.option("--ema-decay", type=float, help="Of the moving average that is the result; 0: none.  [default: 0.999]")
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), help="Of the computation.")
@click.option("--gradient-checkpointing/--no-gradient-checkpointing", default=None, help="Less memory, a third slower.")
@section("Optimisation")
@click.option("--steps", type=int, help="Updates in all.  [default: 1000]")
@click.option("--batch-size", type=int, help="Clips at once, per process.  [default: 1]")
@click.option("--accumulate", type=int, help="Batches in an update.  [default: 1]")
@click.option("--lr", type=float, help="The highest learning rate of AdamW.  [default: 1e-4]")
@click.option("--warmup", type=int, help="Steps up to it; then half a cosine down to 0.  [default: 100]")
@click.option("--weighting", type=click.Choice(["model", "min-snr"]), help="Of the timesteps.  [default: model]")
@click.option("--caption-dropout", type=float, help="Share of empty captions.  [default: 0.1]")
@click.option("--image-dropout", type=float, help="Share of first frames left out.  [default: 0.05]")
@click.option("--seed", type=int, help="Of everything that is drawn.")
@section("Looking at it")
@click.option("--validation-clips", type=int, help="The last ones of the data, not trained on.  [default: 0]")
@click.option("--validation-videos", type=int, help="Of these, how many become videos.  [default: 1]")
@click.option("--validation-steps", type=int, help="Denoising steps of such a video.  [default: 50]")
@click.option("--validate-every", type=int, help="Steps; 0: never.  [default: 250]")
@click.option("--checkpoint-every", type=int, help="Steps.  [default: 250]")
@click.option("--log-every", type=int, help="Steps.  [default: 10]")
def finetune(
    data: Path, preset: str, model: str | None, out: Path, resume: bool, device: str, latents: Path | None,
    camera: str | None, full: bool, **flags: Any,
) -> int:  # fmt: skip
    """Adapt the video model to demonstrations: a LoRA, or with --full all weights.

    After Ctrl-C, SIGTERM or a crash, --resume continues from the last checkpoint. Under `accelerate launch` several
    GPUs train together.
    """
    from genreward_fast.goals.finetune.start import finetune as train_model
    from genreward_fast.goals.finetune.start import result_lines
    from genreward_fast.training.device import resolve_device

    settings = {name: value for name, value in flags.items() if value is not None}
    if full:
        if "lora_rank" in settings:
            raise UserError("--full: trains all weights, so leave --lora-rank out")
        settings["lora_rank"] = None
    record = train_model(
        data,
        preset,
        model,
        out,
        resume=resume,
        device=resolve_device(device),
        latents=latents,
        camera=camera,
        settings=settings,
    )
    for line in result_lines(record, out):
        click.echo(line)
    return 0
