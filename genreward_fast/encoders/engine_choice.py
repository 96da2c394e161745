"""What `--engine` means: torch, auto, a backend's name, or the path of engines that `genreward export` made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from genreward_fast.encoders.engine_cache import Say, cached_engine
from genreward_fast.encoders.engine_source import SUFFIX, EncoderT, EngineSource, engine_dtype
from genreward_fast.encoders.fastest_engine import TORCH, use_fastest
from genreward_fast.errors import UserError
from genreward_fast.export.backends import BACKENDS
from genreward_fast.export.engine_file import read_manifest

AUTO = "auto"
_WORTH_MEASURING = ("vae", "dino")  # what runs all the time; OpenCLIP runs once a goal


def check_engine(engine: str) -> None:
    """
    Raises:
        UserError: it is no name, and no path that holds engines.
    """
    if engine in (TORCH, AUTO, *BACKENDS):
        return
    path = Path(engine).expanduser()
    if not path.exists():
        raise UserError(
            f"--engine {engine}: no such backend, file or folder; use {AUTO}, {TORCH}, {', '.join(BACKENDS)}, "
            "or the path of engines made by genreward export"
        )
    if path.is_dir() and not any(_files(path, name) for name in ("vae", "dino", "clip")):
        raise UserError(f"--engine {engine}: holds no engines (vae-…{SUFFIX} and so on); make them: genreward export")
    if path.is_file() and _encoder_of(path) is None:
        raise UserError(
            f"--engine {engine}: its name must begin with vae-, dino- or clip-, as genreward export has named it"
        )


def load_with_engine(
    name: str,
    load: Callable[[torch.dtype | None], EncoderT],
    device: torch.device,
    engine: str,
    say: Say,
) -> EncoderT:
    """An encoder that computes with what `engine` asks for.

    Args:
        name: vae, dino or clip.
        load: loads it in a dtype, or in its default one.
        engine: see the top of this file. On a CPU `auto` is torch. With a path, an encoder of which there is no engine
            runs on torch.

    Raises:
        UserError: the weights cannot be loaded, or the engine cannot be built or does not fit them and this machine.
    """
    if engine == TORCH or (engine == AUTO and (device.type == "cpu" or name not in _WORTH_MEASURING)):
        return load(None)
    if engine == AUTO:
        source = EngineSource(name, load(engine_dtype(name, device)))
        use_fastest(source, say)
        return load(None) if source.encoder.engine is None else source.encoder
    if engine in BACKENDS:
        return _from_cache(EngineSource(name, load(engine_dtype(name, device))), engine, say)
    path = Path(engine).expanduser()
    files = _files(path, name) if path.is_dir() else [path] if _encoder_of(path) == name else []
    if not files:
        say(f"engine: none for {name} in {path}: it runs on {TORCH}")
        return load(None)
    return _from_files(name, load, files, path)


def _from_cache(source: EngineSource[EncoderT], backend: str, say: Say) -> EncoderT:
    path = cached_engine(source, backend, say)
    try:
        return source.use(path)
    except UserError as error:
        raise UserError(f"{error} (delete it: the next run builds it)") from None


def _from_files(name: str, load: Callable[[torch.dtype | None], EncoderT], files: list[Path], path: Path) -> EncoderT:
    """The encoder with the first of the engines that fits; it is loaded in the dtype of the engine."""
    sources: dict[torch.dtype, EngineSource[EncoderT]] = {}
    refusals = []
    for file in files:
        try:
            dtype = read_manifest(file).inputs[0].torch_dtype
            if dtype not in sources:
                sources[dtype] = EngineSource(name, load(dtype))
            return sources[dtype].use(file)
        except UserError as error:
            refusals.append(str(error))
    if len(refusals) == 1:
        raise UserError(refusals[0])
    raise UserError(f"{path}: none of its {len(refusals)} engines for {name} runs here; the first: {refusals[0]}")


def _files(folder: Path, name: str) -> list[Path]:
    return sorted(folder.glob(f"{name}-*{SUFFIX}"))


def _encoder_of(file: Path) -> str | None:
    name = file.name.split("-")[0]
    return name if name in ("vae", "dino", "clip") else None
