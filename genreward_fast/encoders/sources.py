"""Where weights come from: a local folder or a model hub's repository, and what is said when they are unusable."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from genreward_fast.errors import UserError, first_line
from genreward_fast.files import read_json

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def local_folder(source: str, patterns: Sequence[str], option: str) -> Path:
    """The folder that holds the files of `source`.

    Args:
        source: a local folder, or a hub id `owner/name`; a hub's files are downloaded once and kept in its cache.
        patterns: the files of a hub repository that are needed.
        option: the command line's option for another source, named in errors.

    Raises:
        UserError: there is no such folder, and no such repository can be reached.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{source}: is a file, not a folder; pass the folder that holds the weights with {option} PATH")
    if not _HUB_ID.fullmatch(source):
        raise UserError(f"{source}: no such folder; pass an existing folder or a hub id (owner/name) with {option}")
    try:
        return Path(snapshot_download(source, allow_patterns=list(patterns)))
    except GatedRepoError:
        raise UserError(
            f"{source}: its licence must be accepted on the hub first, then log in with `hf auth login`;"
            f" or pass a local folder with {option} PATH"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(f"{source}: no such folder, and no such repository on the hub; check {option}") from None
    except Exception as error:  # the client raises its HTTP library's own kinds, which are not part of its interface
        raise UserError(
            f"{source}: no such folder, and the hub cannot be reached ({first_line(error)});"
            f" check the connection, or pass a local folder with {option} PATH"
        ) from error


def read_model_config(folder: Path, key: str, expected: str, option: str) -> dict[str, Any]:
    """The folder's `config.json`, after checking that `key` in it names the model that is expected.

    Raises:
        UserError: no such file, not JSON, or another model.
    """
    config = read_json(folder / "config.json")
    found = config.get(key) if isinstance(config, dict) else None
    if found != expected:
        raise UserError(f"{folder}: holds {found or 'no known model'}, not {expected}; pass the right folder: {option}")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder}: no .safetensors file in it; pass a folder with the weights with {option} PATH")
    return config


@contextlib.contextmanager
def loading(what: str, source: str | Path, option: str) -> Iterator[None]:
    """Turns whatever a library raises about bad weights into one line that names the source and the way out.

    Initial weights that a library draws only to overwrite them leave the global generator as it was.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    except UserError:
        raise
    except Exception as error:  # a bad folder makes the libraries raise nearly every kind there is
        raise UserError(
            f"{source}: not usable as {what} ({first_line(error)}); pass a good one with {option}"
        ) from error


def check_loading_info(info: Mapping[str, Any], source: str | Path, option: str) -> None:
    """Refuses weights that do not fit the model tensor for tensor.

    Args:
        info: what `from_pretrained(..., output_loading_info=True)` returns, in diffusers and in transformers.

    Raises:
        UserError: a tensor is missing, foreign or of another shape.
    """
    problems = []
    for key, word in (("missing_keys", "missing"), ("unexpected_keys", "foreign"), ("mismatched_keys", "misshaped")):
        names = sorted(name if isinstance(name, str) else str(name[0]) for name in info.get(key) or ())
        if names:
            problems.append(f"{len(names)} {word} tensors such as {names[0]}")
    if info.get("error_msgs"):
        problems.append(str(info["error_msgs"][0]).splitlines()[0])
    if problems:
        raise UserError(
            f"{source}: its weights do not fit its config ({', '.join(problems)}); pass a good one with {option}"
        )


def read_diffusers_model(kind: Any, folder: Path, what: str, option: str) -> Any:
    """The model of a class of diffusers that a folder holds, in float32 on the CPU, tensor for tensor.

    Args:
        kind: the class.
        what: it is, in words.

    Raises:
        UserError: missing, damaged, or another model.
    """
    return _read_model(kind, folder, "_class_name", kind.__name__, what, option, low_cpu_mem_usage=False)


def read_transformers_model(kind: Any, folder: Path, what: str, option: str) -> Any:
    """As `read_diffusers_model`, of a class of transformers."""
    return _read_model(kind, folder, "model_type", kind.config_class.model_type, what, option, dtype=torch.float32)


def _read_model(kind: Any, folder: Path, key: str, name: str, what: str, option: str, **ways: Any) -> Any:
    """
    Args:
        key, name: what config.json must say.
        ways: the library's own options.
    """
    read_model_config(folder, key, name, option)
    with loading(what, folder, option):
        model, info = kind.from_pretrained(
            folder,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            local_files_only=True,
            **ways,
        )
        check_loading_info(info, folder, option)
    return model
