"""Weights that cannot be used are refused in one line that names them and the option to change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from genreward_fast.encoders.clip import TextImageEncoder
from genreward_fast.encoders.clip_weights import read_clip
from genreward_fast.encoders.image import ImageEncoder, read_dino
from genreward_fast.encoders.video import VideoEncoder, read_vae
from genreward_fast.errors import UserError


def read(name: str, source: Path | str) -> Any:
    readers: dict[str, Callable[[str], Any]] = {
        "vae": read_vae,
        "dino": read_dino,
        "clip": lambda path: read_clip(path, "ViT-B-32"),
    }
    return readers[name](str(source))


def refused(name: str, source: Path | str, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        read(name, source)
    message = str(caught.value)
    assert "\n" not in message
    assert str(source) in message
    assert f"--{name}" in message


@pytest.fixture(params=["vae", "dino", "clip"])
def copied(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, Path]:
    """Encoder, a copy of its folder, and the weights in it."""
    folder = tmp_path / request.param
    shutil.copytree(request.getfixturevalue(f"{request.param}_folder"), folder)
    return request.param, folder, next(folder.glob("*.safetensors"))


def edit(weights: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(weights)
    change(tensors)
    save_file(tensors, weights, metadata={"format": "pt"})


def test_untouched_copy_loads(copied: tuple[str, Path, Path]) -> None:
    name, folder, _ = copied
    assert read(name, folder) is not None


def test_missing_tensor(copied: tuple[str, Path, Path]) -> None:
    name, folder, weights = copied

    def drop(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[max(tensors)]

    edit(weights, drop)
    refused(name, folder, "1 missing tensors")


def test_foreign_tensor(copied: tuple[str, Path, Path]) -> None:
    name, folder, weights = copied
    edit(weights, lambda tensors: tensors.update(stranger=torch.zeros(3)))
    refused(name, folder, "1 foreign tensors such as stranger")


def test_misshaped_tensor(copied: tuple[str, Path, Path]) -> None:
    name, folder, weights = copied

    def widen(tensors: dict[str, torch.Tensor]) -> None:
        key = next(key for key, value in sorted(tensors.items()) if value.ndim == 1)
        tensors[key] = torch.zeros(len(tensors[key]) + 1)

    edit(weights, widen)
    refused(name, folder, "misshaped tensors")


def test_half_a_file(copied: tuple[str, Path, Path]) -> None:
    name, folder, weights = copied
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    refused(name, folder, "not usable")


def test_no_weights(copied: tuple[str, Path, Path]) -> None:
    name, folder, weights = copied
    weights.unlink()
    refused(name, folder, "no .safetensors|no weights")


@pytest.mark.parametrize("name", ["vae", "dino"])
def test_pickled_weights_are_not_read(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = tmp_path / name
    shutil.copytree(request.getfixturevalue(f"{name}_folder"), folder)
    weights = next(folder.glob("*.safetensors"))
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    refused(name, folder, "no .safetensors")


def test_config_of_another_width(copied: tuple[str, Path, Path]) -> None:
    name, folder, _ = copied
    path = folder / ("open_clip_config.json" if name == "clip" else "config.json")
    config = json.loads(path.read_text())
    if name == "vae":
        config["block_out_channels"] = [4, 4, 8, 16]
    elif name == "dino":
        config["intermediate_size"] = 48
    else:
        config["model_cfg"]["vision_cfg"]["image_size"] = 48
    path.write_text(json.dumps(config))
    refused(name, folder, "misshaped tensors")


@pytest.mark.parametrize(("name", "other"), [("vae", "dino"), ("dino", "vae"), ("clip", "dino"), ("vae", "clip")])
def test_folder_of_another_model(name: str, other: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(f"{other}_folder")
    with pytest.raises(UserError, match=str(folder)) as caught:
        read(name, folder)
    assert "\n" not in str(caught.value)


def test_missing_folder(copied: tuple[str, Path, Path]) -> None:
    name, folder, _ = copied
    refused(name, folder / "nowhere", "no such folder")


def test_damaged_config(copied: tuple[str, Path, Path]) -> None:
    name, folder, _ = copied
    path = folder / ("open_clip_config.json" if name == "clip" else "config.json")
    path.write_text(path.read_text()[:40])
    with pytest.raises(UserError, match="not readable as JSON"):
        read(name, folder)


@pytest.mark.parametrize("name", ["vae", "dino", "clip"])
def test_hub_out_of_reach(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(name, "no-owner/no-such-model", "hub cannot be reached")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"x")
    refused("vae", path, "is a file")


def test_clip_unknown_tag() -> None:
    refused("clip", "ViT-B-32/no_such_tag", "unknown weights")


def test_clip_checkpoint_file(clip_folder: Path, tmp_path: Path) -> None:
    """A bare checkpoint is of the preset's architecture; this one is not."""
    weights = clip_folder / "open_clip_model.safetensors"
    with pytest.raises(UserError, match="do not fit"):
        read_clip(str(weights), "ViT-S-32-alt")
    refused("clip", tmp_path / "nowhere.pt", "no such file")
    torch.save({"state_dict": {"x": print}}, tmp_path / "code.pt")
    refused("clip", tmp_path / "code.pt", "not usable")


def test_clip_checkpoint_of_training(clip_folder: Path, tmp_path: Path) -> None:
    """Training saves a pickled state dict, with its wrapper's prefix; it is read without unpickling objects."""
    shutil.copy(clip_folder / "open_clip_config.json", tmp_path)
    state = load_file(clip_folder / "open_clip_model.safetensors")
    checkpoint = {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}
    torch.save(checkpoint, tmp_path / "open_clip_pytorch_model.bin")
    model, _, _ = read_clip(f"local-dir:{tmp_path}", "ViT-B-32")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_fingerprint_sees_weights_and_sizes(vae_folder: Path, dino_folder: Path, clip_folder: Path) -> None:
    first, second, other = read_vae(str(vae_folder)), read_vae(str(vae_folder)), read_vae(str(vae_folder))
    other.encoder.conv_out.conv.bias.data[0] += 1e-3
    same = [VideoEncoder(vae, size=32).fingerprint for vae in (first, second)]
    assert same[0] == same[1]
    assert VideoEncoder(other, size=32).fingerprint != same[0]
    assert VideoEncoder(read_vae(str(vae_folder)), size=40).fingerprint != same[0]
    sizes = [ImageEncoder(read_dino(str(dino_folder)), size=size).fingerprint for size in (64, 64, 80)]
    assert sizes[0] == sizes[1] != sizes[2]
    model, tokenizer, config = read_clip(str(clip_folder), "ViT-B-32")
    before = TextImageEncoder(model, tokenizer, config).fingerprint
    model.logit_scale.data += 1
    assert TextImageEncoder(model, tokenizer, config).fingerprint != before
