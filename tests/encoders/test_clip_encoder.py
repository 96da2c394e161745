from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from genreward_fast.encoders.clip import TextImageEncoder
from genreward_fast.encoders.clip_weights import read_clip


def frames(count: int, height: int = 32, width: int = 32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, 3), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def encoder(clip_folder: Path) -> TextImageEncoder:
    return TextImageEncoder(*read_clip(str(clip_folder), "ViT-B-32"))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 80), (201, 130), (20, 33)])
def test_preprocessing_is_the_library_s(encoder: TextImageEncoder, height: int, width: int) -> None:
    pictures = frames(2, height, width)
    transform = image_transform_v2(PreprocessCfg(size=32), is_train=False)
    theirs = torch.stack([transform(Image.fromarray(picture.numpy())) for picture in pictures])
    ours = encoder.preprocess(pictures)
    assert ours.shape == (2, 3, 32, 32)
    assert torch.equal(ours, theirs)


def test_embeddings_are_the_library_s(clip_folder: Path, encoder: TextImageEncoder) -> None:
    model = open_clip.create_model(f"local-dir:{clip_folder}").eval()
    texts = ["pick up the ball", "open the drawer"]
    with torch.no_grad():
        text = model.encode_text(open_clip.get_tokenizer(f"local-dir:{clip_folder}")(texts), normalize=True)
        image = model.encode_image(encoder.preprocess(frames(3)), normalize=True)
    torch.testing.assert_close(encoder.encode_text(texts), text, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoder.encode_images(frames(3)), image, atol=1e-5, rtol=1e-5)


def test_together_is_one_after_the_other(encoder: TextImageEncoder) -> None:
    texts = ["pick up the ball", "open the drawer"]
    found = encoder.encode_together(frames(3, 40, 50), encoder.tokenizer(texts))
    expected = torch.cat([encoder.encode_images(frames(3, 40, 50)), encoder.encode_text(texts)])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    with pytest.raises(ValueError, match="uint8"):
        encoder.encode_together(frames(3).float(), encoder.tokenizer(texts))


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
def test_together_on_cuda(clip_folder: Path, graphs: bool) -> None:
    """The towers run in two streams, recorded or not."""
    encoder = TextImageEncoder(*read_clip(str(clip_folder), "ViT-B-32")).to("cuda")
    encoder.graphs = graphs
    for seed in range(5):
        pictures = frames(3, 40, 50, seed).cuda()
        texts = [f"task {seed}", "open the drawer"]
        found = encoder.encode_together(pictures, encoder.tokenizer(texts).cuda())
        encoder.graphs = False
        expected = torch.cat([encoder.encode_images(pictures), encoder.encode_text(texts)])
        encoder.graphs = graphs
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert encoder._together.graphs == int(graphs)


def test_unit_norm_and_shapes(encoder: TextImageEncoder) -> None:
    images, texts = encoder.encode_images(frames(3, 40, 50)), encoder.encode_text(["a", "b c"])
    assert images.shape == (3, 12)
    assert texts.shape == (2, 12)
    torch.testing.assert_close(images.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(texts.norm(dim=-1), torch.ones(2))
    assert (texts[0] - texts[1]).abs().max() > 1e-3


def test_batches_are_split(clip_folder: Path, encoder: TextImageEncoder) -> None:
    split = TextImageEncoder(*read_clip(str(clip_folder), "ViT-B-32"), batch=2)
    torch.testing.assert_close(split.encode_images(frames(5)), encoder.encode_images(frames(5)), atol=1e-5, rtol=1e-5)
    texts = ["a", "b", "c"]
    torch.testing.assert_close(split.encode_text(texts), encoder.encode_text(texts), atol=1e-5, rtol=1e-5)


def test_a_list_of_texts_is_encoded_once(clip_folder: Path) -> None:
    encoder = TextImageEncoder(*read_clip(str(clip_folder), "ViT-B-32"))
    calls: list[int] = []
    assert encoder.text is not None
    encoder.text.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    first = encoder.encode_text(["open the drawer", "close it"])
    kept = first.clone()
    first.zero_()  # a caller's own copy
    assert torch.equal(encoder.encode_text(["open the drawer", "close it"]), kept)
    assert calls == [2]
    encoder.encode_text(["close it", "open the drawer"])
    assert calls == [2, 2]
    for number in range(20):
        encoder.encode_text([f"task {number}"])
    assert len(encoder._texts) == 16
    torch.testing.assert_close(encoder.encode_text(["open the drawer", "close it"]), kept)
    assert len(calls) == 23
    encoder.forget()
    encoder.encode_text(["task 19"])
    assert len(calls) == 24


@pytest.mark.gpu
def test_attention_is_fused_on_cuda(clip_folder: Path) -> None:
    encoder = TextImageEncoder(*read_clip(str(clip_folder), "ViT-B-32"), dtype=torch.bfloat16).to("cuda")
    for call in (lambda: encoder.encode_images(frames(2)), lambda: encoder.encode_text(["open the drawer"])):
        with torch.profiler.profile() as profile:
            call()
        names = {event.key for event in profile.key_averages()}
        assert any(name.startswith("aten::_scaled_dot_product_") for name in names)
        assert not any("softmax" in name for name in names)


def test_long_texts_are_cut_off(encoder: TextImageEncoder) -> None:
    long = "pick up the red ball and then " * 20
    torch.testing.assert_close(encoder.encode_text([long]), encoder.encode_text([long + "open the door"]))


def test_frozen(encoder: TextImageEncoder) -> None:
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_refuses_other_inputs(encoder: TextImageEncoder) -> None:
    with pytest.raises(ValueError, match="uint8"):
        encoder.encode_images(frames(1).float())
    with pytest.raises(ValueError, match="N > 0"):
        encoder.encode_images(frames(0))
    with pytest.raises(ValueError, match="list"):
        encoder.encode_text("one sentence")
    with pytest.raises(ValueError, match="at least one"):
        encoder.encode_text([])
