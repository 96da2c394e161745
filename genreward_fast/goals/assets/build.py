"""`genreward assets build`: the parts, one after another; parts of one folder may also be built side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from genreward_fast.errors import UserError
from genreward_fast.files import write_json
from genreward_fast.goals.assets.loop import LoopConfig, Trained
from genreward_fast.goals.assets.plan import (
    HELD_OUT_TASKS,
    PARTS,
    TOTAL_MINUTES,
    BuildFolder,
    RecordingConfig,
    seconds_of,
)
from genreward_fast.goals.assets.recordings import Recordings, read_recordings


@dataclass(frozen=True)
class _Part:
    """A part that learns: what it is, its training and its measuring, and which frames they read."""

    what: str
    limits: str
    loop: LoopConfig
    batch: int
    sizes: Callable[[tuple[int, ...]], tuple[int, ...]]
    train: Callable[..., Trained]
    measure: Callable[[Recordings, BuildFolder], dict[str, float]]


def build(
    out: Path,
    parts: Sequence[str],
    device: torch.device,
    *,
    minutes: float = TOTAL_MINUTES,
    resume: bool = False,
    workers: int | None = None,
    recording: RecordingConfig | None = None,
    steps: int | None = None,
    batch: int | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Builds the parts into `out`; see `plan.BuildFolder` for what it then holds.

    Args:
        parts: of `PARTS`, in any order; the data must be there or among them.
        minutes: what the whole build may take; each part has a fixed share of it.
        resume: keep recordings and go on from checkpoints. Else there must be none of these parts.
        workers: processes that record; None for one a core.
        recording: what is recorded; None for the build's own.
        steps, batch: instead of each part's own.
        say: takes lines about what was done.

    Raises:
        UserError: bad values, or the folder already holds such a part.
        RunFailed, Interrupted: what was saved stays.
    """
    folder, recording = BuildFolder(out), recording or RecordingConfig()
    ordered = [part for part in PARTS if part in parts]
    if unknown := set(parts) - set(PARTS):
        raise UserError(f"--parts {', '.join(sorted(unknown))}: no such part; use some of {', '.join(PARTS)}")
    for part in ordered:
        there = _present(folder, part, recording)
        if there is not None and not resume:
            raise UserError(f"{there}: is there already; go on with --resume, or choose another --out")
    if device.type == "cuda":
        _set_up(device)
    for part in ordered:
        if part == "data":
            from genreward_fast.goals.assets.record import record

            for line in record(recording, folder, workers):
                say(line)
            continue
        if part == "check":
            from genreward_fast.goals.assets.check import check

            for line in check(folder, recording, device):
                say(line)
            continue
        _build_part(part, folder, recording, device, seconds_of(part, minutes), resume, steps, batch, say)
    from genreward_fast.goals.assets.saving import sizes

    if (folder.root / "tiny").is_dir():
        found = sizes(folder.root / "tiny")
        say(f"sizes: {', '.join(f'{name} {size / 1e6:.2f} MB' for name, size in found.items())}; at most 12 MB in all")


def _set_up(device: torch.device) -> None:
    if device.index is not None:  # "cuda" is the current one already
        torch.cuda.set_device(device)  # Triton's kernels are launched on the current one
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.benchmark_limit = 4  # trying all that there is takes half a minute of a part's time
    torch.set_float32_matmul_precision("high")


def _present(folder: BuildFolder, part: str, recording: RecordingConfig) -> Path | None:
    """A file of the part that is there already."""
    if part == "data":
        return next((path for task in recording.tasks if (path := folder.recording(task)).exists()), None)
    if part == "check":  # reads what there is, and takes seconds
        return None
    return next((path for path in (folder.checkpoint(part), folder.weights(part)) if path.exists()), None)


def _build_part(
    name: str,
    folder: BuildFolder,
    recording: RecordingConfig,
    device: torch.device,
    seconds: float,
    resume: bool,
    steps: int | None,
    batch: int | None,
    say: Callable[[str], None],
) -> None:
    from genreward_fast.goals.assets.saving import write_card

    part = _part(name)
    config = LoopConfig(**(vars(part.loop) | {"seconds": seconds, "steps": steps or part.loop.steps}))
    recordings = read_recordings(folder, recording.tasks, part.sizes(recording.sizes), device)
    trained = part.train(recordings, folder, config, batch=batch or part.batch, resume=resume)
    say(f"{name}: {trained.steps} steps in {trained.seconds:.0f} s, {_text(trained.losses)}")
    measured = part.measure(recordings, folder)
    say(f"{name}: {_text(measured)}")
    write_json(
        folder.measured(name),
        {
            "part": name,
            "steps": trained.steps,
            "seconds": round(trained.seconds, 1),
            "seed": config.seed,
            "losses": trained.losses,
            "measured": measured,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        },
    )
    write_card(folder.weights(name), part.what, trained, config, measured, part.limits)


def _text(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def _part(name: str) -> _Part:
    if name == "vae":
        from genreward_fast.goals.assets import vae

        return _Part(
            "Tiny video autoencoder (AutoencoderKLCogVideoX)",
            "trained on one camera, at 128x128, with fast rendering; other pictures come out wrong.",
            LoopConfig(vae.STEPS, lr=1.5e-3, warmup=100),
            vae.BATCH,
            lambda sizes: (max(sizes),),
            vae.train_vae,
            lambda recordings, folder: vae.measure_vae(recordings, folder, HELD_OUT_TASKS),
        )
    if name == "dino":
        from genreward_fast.goals.assets import dino

        return _Part(
            "Tiny image encoder (DINOv3ViTModel)",
            "besides DINO's losses it learned to redraw the frame; one camera, 64x64; unlike DINOv3 it knows no world.",
            LoopConfig(dino.STEPS, lr=1e-3, warmup=200, weight_decay=0.04),
            dino.BATCH,
            lambda sizes: (min(sizes), max(sizes)),
            dino.train_dino,
            lambda recordings, folder: dino.measure_dino(recordings, folder, HELD_OUT_TASKS),
        )
    if name == "generator":
        from genreward_fast.goals.assets import generator, generator_measure

        return _Part(
            "Tiny image-to-video model (CogVideoXTransformer3DModel, T5EncoderModel)",
            "one camera, fast rendering, 17 frames of 128x128; tasks and sentences of Meta-World alone.",
            LoopConfig(generator.STEPS, lr=1e-3, warmup=500, weight_decay=0.01),
            generator.BATCH,
            lambda sizes: (max(sizes),),
            generator.train_generator,
            lambda recordings, folder: generator_measure.measure_generator(recordings, folder, HELD_OUT_TASKS),
        )
    from genreward_fast.goals.assets import clip

    return _Part(
        "Tiny text and image encoder (OpenCLIP)",
        "knows the sentences of Meta-World's tasks and no others.",
        LoopConfig(clip.STEPS, lr=1e-3, warmup=300, weight_decay=0.1),
        clip.BATCH,
        lambda sizes: (max(sizes),),
        clip.train_clip,
        clip.measure_clip,
    )
