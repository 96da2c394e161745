"""Loads OpenCLIP models by the library's names, from a hub id, a folder or a file; strict about every tensor."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import download_pretrained, get_pretrained_cfg
from safetensors.torch import load_file
from torch import Tensor, nn

from genreward_fast.encoders.sources import check_loading_info, loading, local_folder
from genreward_fast.errors import UserError, first_line
from genreward_fast.files import read_json

_CONFIG = "open_clip_config.json"
# In the library's own order of preference; the last three are read with weights_only, so nothing is unpickled.
_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "open_clip_pytorch_model.pt",
)
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the library from warning, through the root logger, that a model it has just built has no weights yet."""
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.ERROR))
    try:
        yield
    finally:
        logging.disable(disabled)


def read_clip(
    source: str, architecture: str, option: str = "--clip"
) -> tuple[nn.Module, Callable[[list[str]], Tensor], dict[str, Any]]:
    """Loads a model in float32 on the CPU.

    Args:
        source: `NAME/TAG` of the library's own (ViT-B-32/laion2b_s34b_b79k); a folder that holds open_clip_config.json
            and the weights (also written `local-dir:FOLDER`); a checkpoint file of `architecture`; or a hub id
            (also written `hf-hub:OWNER/NAME`).
        architecture: the library's name of the model that a checkpoint file holds, such as ViT-B-32.

    Returns:
        The model with its `visual.preprocess_cfg`, its tokenizer, its open_clip configuration.

    Raises:
        UserError: unreachable, missing, damaged, or another model.
    """
    source = source.removeprefix("hf-hub:").removeprefix("local-dir:")
    path = Path(source).expanduser()
    name, _, tag = source.partition("/")
    if path.is_file() or path.suffix in _SUFFIXES:
        checkpoint, model_name = path, architecture
        if not path.is_file():
            raise UserError(f"{source}: no such file; pass an existing checkpoint with {option} PATH")
    elif not path.is_dir() and name in open_clip.list_models():
        checkpoint, model_name = _download(name, tag, option), name
    else:
        folder = local_folder(source, ["open_clip*.safetensors", "*.json", "*.txt"], option)
        found = [folder / weights for weights in _WEIGHTS if (folder / weights).is_file()]
        if not (folder / _CONFIG).is_file() or not found:
            missing = "weights" if (folder / _CONFIG).is_file() else _CONFIG
            raise UserError(f"{folder}: no {missing} in it; pass a folder saved by open_clip with {option} PATH")
        read_json(folder / _CONFIG)
        checkpoint, model_name = found[0], f"local-dir:{folder}"
    with loading("an open_clip model", source, option), quiet():
        state = _read_state(checkpoint)
        model = open_clip.create_model(model_name, pretrained=None, load_weights=False, pretrained_text=False)
        tokenizer = open_clip.get_tokenizer(model_name)
        config = open_clip.get_model_config(model_name)
        _load(model, state, checkpoint, option)
    return model, tokenizer, config


def _download(name: str, tag: str, option: str) -> Path:
    """The checkpoint of one of the library's own pretrained tags, from its cache or downloaded into it."""
    known = get_pretrained_cfg(name, tag)
    if not known:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name))
        raise UserError(f"{name}/{tag}: unknown weights; {option} {name}/TAG takes one of: {tags}")
    repository = (known.get("hf_hub") or "").strip("/")
    if repository.count("/") == 1:
        patterns = ["open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"]
        folder = local_folder(repository, patterns, option)
        found = [folder / weights for weights in _WEIGHTS if (folder / weights).is_file()]
        if found:
            return found[0]
    try:
        return Path(download_pretrained(known))
    except Exception as error:
        raise UserError(
            f"{name}/{tag}: cannot be downloaded ({first_line(error)});"
            f" check the connection, or pass a local folder or file with {option} PATH"
        ) from error


def _read_state(checkpoint: Path) -> dict[str, Tensor]:
    if checkpoint.suffix == ".safetensors":
        return load_file(checkpoint)
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    # Checkpoints of distributed training carry their wrapper's prefix.
    return {key.removeprefix("module."): value for key, value in state.items()}


def _load(model: nn.Module, state: dict[str, Tensor], checkpoint: Path, option: str) -> None:
    """Strictly: the library's own loader would silently resize positional embeddings of another model."""
    expected = model.state_dict()
    info = {
        "missing_keys": expected.keys() - state.keys(),
        "unexpected_keys": state.keys() - expected.keys(),
        "mismatched_keys": [key for key in expected.keys() & state.keys() if expected[key].shape != state[key].shape],
    }
    check_loading_info(info, checkpoint, option)
    model.load_state_dict(state, strict=True)
