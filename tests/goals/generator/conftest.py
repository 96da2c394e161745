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
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from genreward_fast.encoders.architectures import seeded
from genreward_fast.goals.finetune.encoded import EncodedClip, write_clip, write_common
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
    generator = torch.Generator().manual_seed(seed)
    for index in range(count):
        write_clip(folder, index, _make_clip(generator, **sizes))
    write_common(folder, 8.0, torch.randn(TINY["max_text_seq_length"], TINY["text_embed_dim"], generator=generator))
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
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps one state in a process, and refuses another precision than the first one's."""
    yield
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
