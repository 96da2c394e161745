"""Loads S3D from a file: the paper's (HowTo100M, with its vocabulary) or torchvision's (Kinetics-400), strictly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from genreward_fast.encoders.architectures import seeded
from genreward_fast.encoders.s3d import KineticsS3D
from genreward_fast.encoders.s3d_network import TextVideoS3D
from genreward_fast.encoders.sources import check_loading_info, loading
from genreward_fast.errors import UserError

OPTION = "--reward-weights"
VOCABULARY = "s3d_dict.npy"
_SUFFIXES = (".pth", ".pt", ".safetensors")
_TEXT_TABLE, _CLASSIFIER = "text_module.word_embd.weight", "classifier.1.weight"


def read_s3d(source: str) -> tuple[TextVideoS3D | KineticsS3D, dict[str, int] | None]:
    """The network in float32 on the CPU, and the vocabulary if the paper's lies beside its weights.

    Args:
        source: a checkpoint (.pth, .pt or .safetensors), or a folder with one: the paper's `s3d_howto100m.pth`, or
            torchvision's `s3d-….pth`. Nothing in it is unpickled.

    Raises:
        UserError: missing, damaged, or of another model.
    """
    path = _checkpoint(source)
    with loading("S3D", path, OPTION):
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
            raise UserError(f"{path}: holds no state dict of tensors; pass the weights of S3D with {OPTION} PATH")
        if _TEXT_TABLE in state:
            words, word_dim = state[_TEXT_TABLE].shape
            dim, hidden = state["text_module.fc2.weight"].shape
            network = TextVideoS3D(dim, words, word_dim, hidden)
            _load(network, state, path)
            return network, _vocabulary(path.parent / VOCABULARY, words)
        if _CLASSIFIER in state:
            model = _torchvision_s3d(len(state[_CLASSIFIER]))
            _load(model, state, path)
            return KineticsS3D(model), None
    raise UserError(f"{path}: is neither the S3D of the paper nor torchvision's; pass one of them with {OPTION} PATH")


def random_s3d(seed: int) -> KineticsS3D:
    """torchvision's architecture with initial weights, for benchmarks."""
    with seeded(seed):
        return KineticsS3D(_torchvision_s3d(400))


def _torchvision_s3d(classes: int) -> nn.Module:
    from torchvision.models.video import s3d

    return s3d(weights=None, num_classes=classes)


def _checkpoint(source: str) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
        if len(found) != 1:
            raise UserError(f"{path}: holds {len(found)} checkpoints instead of one; name the file with {OPTION} PATH")
        return found[0]
    if not path.is_file():
        raise UserError(f"{source}: no such file; pass the weights of S3D with {OPTION} PATH")
    return path


def _load(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    expected = network.state_dict()
    info = {
        "missing_keys": expected.keys() - state.keys(),
        "unexpected_keys": state.keys() - expected.keys(),
        "mismatched_keys": [key for key in expected.keys() & state.keys() if expected[key].shape != state[key].shape],
    }
    check_loading_info(info, path, OPTION)
    network.load_state_dict(state)


def _vocabulary(path: Path, rows: int) -> dict[str, int] | None:
    """Word -> row: the words in the file's order, from row 1 on; row 0 is the empty word."""
    if not path.is_file():
        return None
    try:
        words = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not an array of words ({type(error).__name__}); take the file of the paper") from None
    if words.ndim != 1 or words.dtype.kind != "U" or len(words) >= rows:
        raise UserError(
            f"{path}: holds {words.dtype} {words.shape}, not fewer than {rows} words; take the paper's file"
        )
    return {str(word): row for row, word in enumerate(words, 1)}
