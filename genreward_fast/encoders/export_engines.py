"""Engine files of a preset's encoders, in a folder that can be taken to another machine."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from genreward_fast.encoders.engine_source import EngineSource, engine_dtype, fidelity_text
from genreward_fast.encoders.frozen import FrozenEncoder
from genreward_fast.encoders.presets import (
    EncoderConfig,
    load_image_encoder,
    load_text_image_encoder,
    load_video_encoder,
)
from genreward_fast.errors import UserError
from genreward_fast.export.backends import backend as backend_of
from genreward_fast.export.engine import Manifest
from genreward_fast.export.engine_file import payload_file
from genreward_fast.export.machine import compute_capability

_LOADERS: dict[str, Callable[..., FrozenEncoder]] = {
    "vae": load_video_encoder,
    "dino": load_image_encoder,
    "clip": load_text_image_encoder,
}


@dataclass(frozen=True)
class ExportedEngine:
    """An engine file as it is reported.

    Attributes:
        path: the file.
        seconds: of building; None if it was there already.
        manifest: what the file says about itself.
        note: what must be known about the encoder's weights; "" if they are trained.
    """

    path: Path
    seconds: float | None
    manifest: Manifest
    note: str


def export_engines(
    config: EncoderConfig,
    *,
    encoder: str,
    backend: str,
    out: Path,
    device: torch.device,
    dtype: str | None = None,
    max_batch: int | None = None,
    hardware: str | None = None,
    overwrite: bool = False,
    say: Callable[[str], None],
) -> list[ExportedEngine]:
    """Builds engines into the folder `out`; one that is there is kept.

    Args:
        encoder: vae, dino, clip or all.
        dtype: as PyTorch names it, "float16"; None for what the cache's engines have (`engine_dtype`).
        max_batch: clips or frames at once; None for 4 of the video encoder and 64 of the others.
        hardware: "sm_89" and the like, to build for a GPU that is not in the machine; None for the device.
        overwrite: replace a file that is there and differs.

    Raises:
        UserError: bad input, or what cannot be built. Files that were finished before stay.
    """
    chosen = backend_of(backend)
    if reason := chosen.why_unavailable():
        raise UserError(f"--backend {backend}: {reason}")
    if hardware is not None and not re.fullmatch(r"sm_\d{2,3}", hardware):
        raise UserError(f"--for {hardware}: not a GPU's compute capability; give it as sm_89 for 8.9")
    if max_batch is not None and max_batch < 1:
        raise UserError(f"--max-batch must be at least 1, not {max_batch}")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder with --out")
    exported = []
    for name in _LOADERS if encoder == "all" else [encoder]:
        source = EngineSource(
            name, _LOADERS[name](config, device, getattr(torch, dtype) if dtype else engine_dtype(name, device))
        )
        place = hardware or compute_capability(device)
        path = out / source.file_name(backend, place)
        most = max_batch or source.max_batch()
        if path.exists() and not overwrite:
            with payload_file(path, chosen.suffix) as (manifest, _):
                reason = _difference(manifest, source, chosen.version(), place, most)
            if reason:
                raise UserError(f"{path}: {reason}; replace it with --overwrite, or name another --out")
            say(f"{path}: is there already, kept")
            exported.append(ExportedEngine(path, None, manifest, source.encoder.note))
            continue
        say(f"{path}: building with {backend} {chosen.version()} (it may take minutes)")
        begin = time.monotonic()
        manifest = source.build(path, backend, most, hardware)
        exported.append(ExportedEngine(path, time.monotonic() - begin, manifest, source.encoder.note))
    return exported


def _difference(manifest: Manifest, source: EngineSource, version: str, place: str, max_batch: int) -> str | None:
    """How an engine differs from the one that would be built; None if it does not."""
    if manifest.weights_sha256 != source.weights:
        return "is an engine of other weights"
    if reason := source.why_unfit(manifest):
        return reason
    found = (manifest.backend_version, manifest.compute_capability, manifest.max_batch or 1)
    for what, theirs, ours in zip(("version", "hardware", "largest batch"), found, (version, place, max_batch)):
        if theirs != ours:
            return f"is an engine whose {what} is {theirs}, not {ours}"
    return None


def table(exported: Sequence[ExportedEngine]) -> list[str]:
    """What the command prints: a line for every file, then what must be known about them."""
    rows = [("file", "MB", "build s", "rel. error", "backend")]
    for engine in exported:
        manifest = engine.manifest
        rows.append(
            (
                str(engine.path),
                f"{engine.path.stat().st_size / 1e6:.1f}",
                "kept" if engine.seconds is None else f"{engine.seconds:.1f}",
                fidelity_text(manifest),
                f"{manifest.backend} {manifest.backend_version}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return lines + [f"note: {note}" for note in sorted({engine.note for engine in exported} - {""})]
