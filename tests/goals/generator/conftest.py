"""A small CogVideoX image-to-video model on disk as a user would have it, and encoded clips for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
)
from safetensors.torch import save_file
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from genreward_fast.encoders.architectures import seeded
from genreward_fast.files import write_json
from genreward_fast.goals.finetune.encoded import EncodedClip
from genreward_fast.goals.latent_cache import FORMAT, INDEX, caption_path, clip_path
from genreward_fast.goals.video_model_configs import SCHEDULER, TRANSFORMER

VAE = {
    "block_out_channels": (4, 4, 8, 8),
    "layers_per_block": 1,
    "latent_channels": 16,
    "norm_num_groups": 2,
    "scaling_factor": 0.7,
}
WORDS = ["pick", "up", "the", "ball", "push", "button", "open", "door"]
TINY = TRANSFORMER["tiny"]


def _save_model(folder: Path, seed: int = 0, *, dpm: bool = False, vae=None, **changes) -> Path:
    """Saves a pipeline with seeded weights; `changes` are made to the transformer's configuration."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *((f"▁{word}", -1.0) for word in WORDS)]
    with seeded(seed):
        text_encoder = T5EncoderModel(
            T5Config(vocab_size=len(pieces) + 4, d_model=24, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        )
        transformer = CogVideoXTransformer3DModel(**(TINY | changes))
        CogVideoXImageToVideoPipeline(
            tokenizer=T5Tokenizer(vocab=pieces, extra_ids=4),
            text_encoder=text_encoder.eval(),
            vae=AutoencoderKLCogVideoX(**(VAE | (vae or {}))).eval(),
            transformer=transformer.eval(),
            scheduler=(CogVideoXDPMScheduler if dpm else CogVideoXDDIMScheduler)(**SCHEDULER),
        ).save_pretrained(folder)
    return folder


def _make_clip(generator: torch.Generator, frames: int = 3, side: int = 4, wordings: int = 2) -> EncodedClip:
    """Random moments, with small variances."""
    channels = VAE["latent_channels"]

    def moments(*shape: int) -> torch.Tensor:
        mean = torch.randn(*shape[:-3], channels, *shape[-2:], generator=generator)
        return torch.cat([mean, torch.full_like(mean, -6.0)], -3)

    return EncodedClip(
        video=moments(frames, channels, side, side).movedim(0, 1).contiguous(),
        first_frames=moments(2, channels, side, side),
        texts=torch.randn(wordings, TINY["max_text_seq_length"], TINY["text_embed_dim"], generator=generator),
        frame=torch.randint(0, 256, (8 * side, 8 * side, 3), generator=generator, dtype=torch.uint8),
    )


def _save_clips(folder: Path, seed: int = 0, count: int = 4, **sizes: int) -> Path:
    """A cache of latents as `fill_latent_cache` leaves it, of random clips; clip N's key is its number."""
    generator = torch.Generator().manual_seed(seed)
    for kind in ("clips", "captions"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    clips = []
    for index in range(count):
        clip, key = _make_clip(generator, **sizes), f"{index:05d}"
        tensors = {
            "moments": clip.video,
            "image_moments": clip.first_frames[0][:, None].clone(),
            "noisy_image_moments": clip.first_frames,
            "image": clip.frame,
        }
        save_file(tensors, clip_path(folder, key))
        captions = {f"caption {i}": f"{key}-{i}" for i in range(len(clip.texts))}
        for caption_key, text in zip(captions.values(), clip.texts):
            save_file({"embedding": text.contiguous()}, caption_path(folder, caption_key))
        clips.append({"name": f"clip {index}", "key": key, "captions": captions})
    empty = torch.randn(TINY["max_text_seq_length"], TINY["text_embed_dim"], generator=generator)
    save_file({"embedding": empty}, caption_path(folder, "none"))
    shape = {"frames": 9, "height": 32, "width": 32, "scale": 0.7, "image_scale": 0.7, "max_sequence_length": 12}
    encoders = {"vae": str(seed), "text": str(seed)}
    write_json(folder / INDEX, FORMAT | shape | {"encoders": encoders, "no_text": "none", "clips": clips})
    return folder


@pytest.fixture
def save_model() -> Callable[..., Path]:
    return _save_model


@pytest.fixture
def save_clips() -> Callable[..., Path]:
    return _save_clips


@pytest.fixture
def make_clip() -> Callable[..., EncodedClip]:
    return _make_clip


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return _save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return _save_clips(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def own_text_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENREWARD_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps one state in a process, and refuses another precision than the first one's."""
    yield
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
