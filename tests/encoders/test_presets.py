from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from genreward_fast.encoders import architectures
from genreward_fast.encoders.presets import (
    EncoderConfig,
    Encoders,
    load_image_encoder,
    load_text_image_encoder,
    load_video_encoder,
    shared_encoders,
)
from genreward_fast.errors import UserError

TINY = EncoderConfig(preset="tiny")


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_paper_architectures() -> None:
    """Their published sizes: 92.2 million in the video encoder, 29 million in ViT-S/16+."""
    with torch.device("meta"):
        vae = AutoencoderKLCogVideoX(**architectures.VAE["paper"])
        vit = DINOv3ViTModel(DINOv3ViTConfig(**architectures.DINO["paper"]))
    assert parameters(vae.encoder) == 92_215_456
    assert parameters(vit) == 28_692_864
    assert architectures.CLIP["paper"]["vision_cfg"]["patch_size"] == 32
    assert (EncoderConfig().clip_size, EncoderConfig().feature_size, EncoderConfig().clip_length) == (480, 224, 16)


def test_tiny_encoders() -> None:
    encoders = Encoders(TINY)
    assert encoders.note == "untrained encoders"
    assert encoders.fingerprints() == {}
    latent = encoders.video(torch.zeros(1, 16, 128, 128, 3, dtype=torch.uint8))
    assert latent.shape == (1, 16, 4, 16, 16)
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (8, 64, 64, 3), generator=generator, dtype=torch.uint8)
    features = encoders.image(frames)
    assert features.shape == (8, 128)
    # Untrained features still tell pictures apart.
    assert features.std(0).mean() > 0.05
    assert encoders.text_image.encode_images(frames).shape == encoders.text_image.encode_text(["a"] * 8).shape
    assert encoders.video.note == encoders.image.note == encoders.text_image.note == "untrained encoders"
    assert set(encoders.fingerprints()) == {"vae", "dino", "clip"}
    for encoder in (encoders.video, encoders.image):
        assert 0.3e6 < parameters(encoder) < 1e6
    assert encoders.video is encoders.video


def test_untrained_weights_ignore_and_keep_the_global_generator() -> None:
    prints = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.random.get_rng_state()
        encoders = (load_video_encoder(TINY), load_image_encoder(TINY), load_text_image_encoder(TINY))
        prints.append([encoder.fingerprint for encoder in encoders])
        assert torch.equal(state, torch.random.get_rng_state())
    assert prints[0] == prints[1]
    other = EncoderConfig(preset="tiny", weights_seed=1)
    assert load_image_encoder(other).fingerprint != prints[0][1]


def test_loading_keeps_the_global_generator(vae_folder: Path, dino_folder: Path, clip_folder: Path) -> None:
    config = EncoderConfig(
        vae=str(vae_folder), dino=str(dino_folder), clip=str(clip_folder), clip_frame_size=32, image_size=64
    )
    assert config.note == ""
    state = torch.random.get_rng_state()
    encoders = Encoders(config)
    assert encoders.video(torch.zeros(1, 16, 32, 32, 3, dtype=torch.uint8)).shape == (1, 6, 4, 4, 4)
    assert encoders.image(torch.zeros(1, 64, 64, 3, dtype=torch.uint8)).shape == (1, 24)
    assert encoders.text_image.encode_text(["a"]).shape == (1, 12)
    assert encoders.text_image.note == encoders.video.note == encoders.image.note == ""
    assert torch.equal(state, torch.random.get_rng_state())


def test_dtype_can_be_chosen() -> None:
    assert load_video_encoder(TINY).dtype == torch.float32
    assert load_video_encoder(TINY, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert load_image_encoder(TINY, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_one_path_leaves_the_others_untrained(dino_folder: Path) -> None:
    config = EncoderConfig(preset="tiny", dino=str(dino_folder))
    assert config.note_of("dino") == ""
    assert config.note == config.note_of("vae") == "untrained encoders"


def test_random_says_so() -> None:
    assert EncoderConfig(weights="random").note == "random weights"
    assert EncoderConfig(weights="random").source("vae") is None


def test_paper_sources() -> None:
    config = EncoderConfig()
    assert config.source("vae") == "zai-org/CogVideoX-5b-I2V"
    assert config.source("dino") == "facebook/dinov3-vits16plus-pretrain-lvd1689m"
    assert config.source("clip") == "ViT-B-32/laion2b_s34b_b79k"


def test_shared_encoders_are_shared() -> None:
    assert shared_encoders(TINY) is shared_encoders(EncoderConfig(preset="tiny"), torch.device("cpu"))
    assert shared_encoders(TINY) is not shared_encoders(EncoderConfig(preset="tiny", weights_seed=1))


def test_tiny_takes_the_weights_that_ship(dino_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dino").symlink_to(dino_folder)
    monkeypatch.setattr("genreward_fast.encoders.presets.SHIPPED", tmp_path)
    assert TINY.source("dino") == str(tmp_path / "dino")
    assert TINY.note_of("dino") == ""
    assert TINY.note == TINY.note_of("clip") == "untrained encoders"  # the others do not ship here
    loaded = load_image_encoder(TINY)
    assert loaded.fingerprint == load_image_encoder(EncoderConfig(preset="tiny", dino=str(dino_folder))).fingerprint
    assert EncoderConfig(preset="tiny", weights="untrained").source("dino") is None


def test_tiny_without_trained_weights_says_so() -> None:
    config = EncoderConfig(preset="tiny", weights="pretrained")
    with pytest.raises(UserError, match="--vae PATH"):
        load_video_encoder(config)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"preset": "huge"}, "no such preset"),
        ({"weights": "good"}, "weights 'good'"),
        ({"weights": "untrained"}, "tiny only"),
        ({"weights": "random", "vae": "x/y"}, "contradicts --vae"),
        ({"clip_length": 0}, "clip length 0"),
    ],
)
def test_contradictions(settings: dict[str, object], match: str) -> None:
    with pytest.raises(UserError, match=match):
        EncoderConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.slow
def test_random_full_size_weights_build() -> None:
    config = EncoderConfig(weights="random", clip_frame_size=32, image_size=32)
    encoders = Encoders(config)
    assert encoders.video(torch.zeros(1, 16, 32, 32, 3, dtype=torch.uint8)).shape == (1, 16, 4, 4, 4)
    assert encoders.image(torch.zeros(1, 32, 32, 3, dtype=torch.uint8)).shape == (1, 384)
    assert encoders.text_image.encode_text(["a"]).shape == (1, 512)
    assert encoders.note == encoders.video.note == "random weights"
