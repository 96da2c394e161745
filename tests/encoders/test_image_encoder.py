from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import DINOv3ViTImageProcessor, DINOv3ViTModel

from genreward_fast.encoders.image import ImageEncoder, read_dino
from genreward_fast.errors import UserError

STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def frames(count: int, height: int = 64, width: int = 64, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, 3), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def encoder(dino_folder: Path) -> ImageEncoder:
    return ImageEncoder(read_dino(str(dino_folder)), size=64)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80), (200, 130), (31, 33)])
def test_preprocessing_is_the_library_s(encoder: ImageEncoder, height: int, width: int) -> None:
    pictures = frames(3, height, width)
    processor = DINOv3ViTImageProcessor(size={"height": 64, "width": 64})
    theirs = processor(images=list(pictures.permute(0, 3, 1, 2)), return_tensors="pt")["pixel_values"]
    ours = encoder.preprocess(pictures)
    assert ours.shape == (3, 3, 64, 64)
    assert ((ours - theirs) * STD).abs().max() <= 1 / 255


def test_is_the_class_token_after_the_final_norm(dino_folder: Path, encoder: ImageEncoder) -> None:
    pictures = frames(2)
    vit = DINOv3ViTModel.from_pretrained(dino_folder).eval()
    with torch.no_grad():
        tokens = vit(pixel_values=encoder.preprocess(pictures)).last_hidden_state
    features = encoder(pictures)
    assert features.shape == (2, 24) == (2, encoder.dim)
    torch.testing.assert_close(features, tokens[:, 0], atol=1e-5, rtol=1e-5)
    # LayerNorm with its initial scale and shift leaves mean 0 and variance 1.
    torch.testing.assert_close(features.mean(-1), torch.zeros(2), atol=1e-5, rtol=0)


def test_attention_is_fused(encoder: ImageEncoder) -> None:
    """PyTorch's own attention runs, once a layer, and nothing writes its probabilities."""
    with torch.profiler.profile() as profile:
        encoder(frames(2))
    calls = {event.key: event.count for event in profile.key_averages()}
    assert calls["aten::scaled_dot_product_attention"] == 2
    assert not any("softmax" in name for name in calls)


def test_frames_do_not_influence_each_other(encoder: ImageEncoder) -> None:
    pictures = frames(5)
    torch.testing.assert_close(encoder(pictures)[3], encoder(pictures[3:4])[0], atol=1e-5, rtol=1e-5)
    assert (encoder(pictures)[0] - encoder(pictures)[1]).abs().max() > 0.05


def test_batches_are_split(dino_folder: Path, encoder: ImageEncoder) -> None:
    split = ImageEncoder(read_dino(str(dino_folder)), size=64, batch=2)
    torch.testing.assert_close(split(frames(5)), encoder(frames(5)), atol=1e-5, rtol=1e-5)


def test_two_calls_are_equal(encoder: ImageEncoder) -> None:
    assert torch.equal(encoder(frames(2)), encoder(frames(2)))


def test_bfloat16(dino_folder: Path, encoder: ImageEncoder) -> None:
    half = ImageEncoder(read_dino(str(dino_folder)), size=64, dtype=torch.bfloat16)
    features = half(frames(2))
    assert half.dtype == torch.bfloat16
    assert features.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(features, encoder(frames(2))).min() > 0.995
    assert half.fingerprint == encoder.fingerprint


def test_frozen(encoder: ImageEncoder) -> None:
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_no_frames(encoder: ImageEncoder) -> None:
    assert encoder(frames(0)).shape == (0, 24)


@pytest.mark.parametrize("bad", [frames(1).float(), frames(1)[0], frames(1).permute(0, 3, 1, 2)])
def test_refuses_other_inputs(encoder: ImageEncoder, bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        encoder(bad)


def test_refuses_sizes_that_do_not_divide(dino_folder: Path) -> None:
    with pytest.raises(UserError, match="multiple of the patch size 16"):
        ImageEncoder(read_dino(str(dino_folder)), size=70)
