"""From a command's arguments to a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from genreward_fast.errors import UserError
from genreward_fast.goals.finetune import state
from genreward_fast.goals.finetune.config import FinetuneConfig
from genreward_fast.goals.finetune.encode import encoded_clips
from genreward_fast.goals.video_model import model_folder, model_source, read_pipeline, require_generate_extra

# What may change when a run goes on: none of it changes a step that has been made.
_FREE = {"steps", "log_every", "checkpoint_every", "validate_every", "validation_videos", "validation_steps"}


def resolve_config(settings: dict[str, Any], saved: dict[str, Any] | None) -> FinetuneConfig:
    """The settings of a run.

    Args:
        settings: the ones that were given; the others keep their defaults, or those of the run that goes on.
        saved: of the run that goes on.

    Raises:
        UserError: a setting makes no sense, or is not the one that the run was started with.
    """
    if saved is None:
        return FinetuneConfig(**settings)
    for name, value in settings.items():
        if name not in _FREE and saved[name] != value:
            raise UserError(f"--resume: the run was started with {name} {saved[name]}, not {value}; leave it out")
    return FinetuneConfig(**(saved | settings))


def finetune(
    data: Path,
    preset: str,
    model: str | None,
    out: Path,
    *,
    resume: bool,
    device: torch.device,
    latents: Path | None = None,
    camera: str | None = None,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Fine-tunes a video model; see `FinetuneConfig` for `settings`.

    Args:
        data: demonstrations of any kind that `read_demos` knows, or a cache of latents.
        latents: where demonstrations are cached once encoded; None for `out/latents`.
        camera: of a LeRobot dataset; see `read_demos`.

    Returns:
        what `finetune.json` records.

    Raises:
        UserError: bad input.
        RunFailed: the run could not go on.
    """
    require_generate_extra()
    from genreward_fast.goals.finetune.trainer import FineTuner

    if not resume and (out / state.NAME).exists():
        raise UserError(f"{out}: holds a run already; go on with --resume, or name another folder with --out")
    resumed = state.load(out) if resume else None
    if device.type == "cpu" and not resume:
        settings = {"dtype": "float32"} | settings
    config = resolve_config(settings, resumed and resumed["config"])
    folder = model_folder(model_source(preset, model))
    clips = encoded_clips(data, latents or out / "latents", folder, getattr(torch, config.dtype), device, camera)
    if resumed is not None and resumed["data"] != clips.identity:  # before gigabytes are loaded
        raise UserError(f"{out}: the run was started with other data; resume it with the same --data")
    dtype = torch.float32 if config.lora_rank is None else getattr(torch, config.dtype)
    pipeline = read_pipeline(folder, dtype)
    return FineTuner(pipeline, clips, config, out, resumed=resumed, cpu=device.type == "cpu").run()


def result_lines(record: dict[str, Any], out: Path) -> list[str]:
    """What a finished run says of itself, in the first of its processes; the others say nothing."""
    from accelerate import PartialState

    if not PartialState().is_main_process:
        return []
    rank = record["config"]["lora_rank"]
    kind = "all weights" if rank is None else f"a LoRA of rank {rank}"
    lines = [f"{kind} after {record['step']} steps; loss {record['loss']:.4f}"]
    if record["validation_loss"] is not None:
        lines.append(f"loss on held-out clips {record['validation_loss']:.4f}")
    return [*lines, f"everything is in {out}"]
