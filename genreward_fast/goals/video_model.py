"""The image-to-video model (CogVideoX, arXiv 2408.06072): where it comes from, loaded strictly from safetensors."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from genreward_fast.encoders import presets
from genreward_fast.encoders.sources import check_loading_info, loading, local_folder, read_model_config
from genreward_fast.encoders.video import read_vae
from genreward_fast.errors import RunFailed, UserError
from genreward_fast.files import read_json

# To type checkers the library's classes have no attributes.
Pipeline: TypeAlias = Any  # CogVideoXImageToVideoPipeline
Transformer: TypeAlias = Any  # CogVideoXTransformer3DModel
OPTION = "--model"
_SOURCES = {"paper": "zai-org/CogVideoX-5b-I2V"}
_PRESETS = ("paper", "tiny")
_FILES = ["*/*.json", "*/*.safetensors*", "*/*.model", "model_index.json"]
_SCHEDULERS = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")


def require_generate_extra() -> None:
    """Raises:
    UserError: a library of the extra `generate` is not installed.
    """
    for name in ("accelerate", "peft", "tqdm"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{name} is not installed; pip install 'genreward-fast[generate]'")


def shipped_generator() -> Path | None:
    """The folder of the tiny preset's image-to-video model, in diffusers' layout; None if it does not ship."""
    folder = presets.SHIPPED / "generator"
    return folder if folder.is_dir() else None


def model_source(preset: str, model: str | None) -> str:
    """Hub id or folder of the preset's model, or `model` if it is given.

    Raises:
        UserError: no such preset, or the preset has no model of its own.
    """
    if preset not in _PRESETS:
        raise UserError(f"preset {preset!r}: no such preset; use one of: {', '.join(_PRESETS)}")
    if model is not None:
        return model
    if preset == "tiny" and (shipped := shipped_generator()) is not None:
        return str(shipped)
    if preset not in _SOURCES:
        raise UserError(f"preset {preset}: has no trained video model; pass a folder with one with {OPTION} PATH")
    return _SOURCES[preset]


def model_folder(source: str) -> Path:
    """The local folder of a model in diffusers' layout, with a subfolder for each part; a hub's is downloaded once.

    Raises:
        UserError: unreachable, or not an image-to-video model.
    """
    folder = local_folder(source, _FILES, OPTION)
    index = read_json(folder / "model_index.json")
    found = index.get("_class_name") if isinstance(index, dict) else None
    if found != "CogVideoXImageToVideoPipeline":
        raise UserError(f"{folder}: holds {found}, not CogVideoXImageToVideoPipeline; pass the right one with {OPTION}")
    return folder


def read_transformer(folder: Path, dtype: torch.dtype = torch.float32) -> Transformer:
    """The denoising transformer of a model's folder, on the CPU, in eval mode.

    Raises:
        UserError: missing, damaged, another model, or one without a place for the first frame.
    """
    from diffusers import CogVideoXTransformer3DModel

    folder = folder / "transformer"
    config = read_model_config(folder, "_class_name", "CogVideoXTransformer3DModel", OPTION)
    if config.get("in_channels") != 2 * config.get("out_channels", 0):
        raise UserError(f"{folder}: takes no first frame (in_channels is not 2 x out_channels); use an I2V model")
    with loading("a CogVideoX transformer", folder, OPTION):
        transformer, info = CogVideoXTransformer3DModel.from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, output_loading_info=True, local_files_only=True
        )
        check_loading_info(info, folder, OPTION)
    return transformer


def read_scheduler(folder: Path) -> Any:
    """The noise schedule and sampler that the model's folder names: CogVideoX's DDIM or DPM.

    Raises:
        UserError: missing, or another one.
    """
    import diffusers

    config = read_json(folder / "scheduler" / "scheduler_config.json")
    name = config.get("_class_name") if isinstance(config, dict) else None
    if name not in _SCHEDULERS:
        raise UserError(f"{folder / 'scheduler'}: holds {name}, not one of {', '.join(_SCHEDULERS)}; use {OPTION}")
    with loading("a CogVideoX scheduler", folder / "scheduler", OPTION):
        return getattr(diffusers, name).from_pretrained(folder / "scheduler", local_files_only=True)


def read_text_encoder(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The T5 encoder of a model's folder, on the CPU, and its tokenizer.

    Raises:
        UserError: missing, damaged, or another model.
    """
    from transformers import AutoTokenizer, T5EncoderModel

    read_json(folder / "text_encoder" / "config.json")
    with loading("a T5 text encoder", folder / "text_encoder", OPTION):
        loaded: Any = T5EncoderModel.from_pretrained(
            folder / "text_encoder", dtype=dtype, use_safetensors=True, output_loading_info=True, local_files_only=True
        )
        encoder, info = loaded
        check_loading_info(info, folder / "text_encoder", OPTION)
    with loading("a tokenizer", folder / "tokenizer", OPTION):
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    return encoder, tokenizer


def read_pipeline(folder: Path, dtype: torch.dtype = torch.float32) -> Pipeline:
    """diffusers' pipeline, on the CPU, without the text encoder: `text_embeddings` computes what that would.

    A folder without an autoencoder shares the one that stands beside it, as the shipped model does.

    Raises:
        UserError: a part is missing, damaged, or another model.
    """
    from diffusers import CogVideoXImageToVideoPipeline

    return CogVideoXImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=cast(read_vae(str(folder if (folder / "vae").is_dir() else folder.parent), OPTION), dtype),
        transformer=read_transformer(folder, dtype),
        scheduler=read_scheduler(folder),
    )


def cast(module: Any, dtype: torch.dtype) -> Any:
    """Converts a library's model in place; its own `to` warns of parts that it would keep in float32, even of none."""
    return nn.Module.to(module, dtype)


@contextmanager
def explaining_out_of_memory(doing: str, lower: str) -> Iterator[None]:
    """Turns an allocation that failed into one line that says what was being done and what to lower.

    Raises:
        RunFailed: instead of the allocator's error.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise RunFailed(f"out of memory {doing}; {lower}") from error
