"""The cache beside the unmodified pipeline of diffusers, on small models of the checkpoint's classes."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
)
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from genreward_fast.errors import RunFailed, UserError
from genreward_fast.goals import latent_fill
from genreward_fast.goals.demos import Demo, DemoSet, read_demos
from genreward_fast.goals.frames import to_size, uniform_indices
from genreward_fast.goals.latent_cache import LatentCache
from genreward_fast.goals.latent_fill import fill_latent_cache
from genreward_fast.goals.video_io import write_video

SHAPE: dict[str, int] = {"frames": 9, "height": 16, "width": 24, "max_sequence_length": 12}
SEED = torch.seed() % 2**31


@pytest.fixture(scope="module")
def pipeline() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        vae = AutoencoderKLCogVideoX(
            block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=2,
            temporal_compression_ratio=4, scaling_factor=0.7,
        )  # fmt: skip
        text_encoder = T5EncoderModel(
            T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2, dropout_rate=0.1)
        )
        transformer = CogVideoXTransformer3DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=8, out_channels=4, time_embed_dim=4,
            text_embed_dim=8, num_layers=1, sample_width=3, sample_height=2, sample_frames=9, patch_size=1,
            temporal_compression_ratio=4, max_text_seq_length=12, use_rotary_positional_embeddings=True,
        )  # fmt: skip
    words = ["<pad>", "</s>", "<unk>", "push", "pull", "the", "ball", "door", "open"]
    tokens = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    pipe = CogVideoXImageToVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder.eval(),
        vae=vae.eval(),
        transformer=transformer.eval(),
        scheduler=CogVideoXDDIMScheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def demos(tmp_path: Path) -> DemoSet:
    """Two clips of different lengths, sizes and rates."""
    print(f"seed {SEED}")
    generator = torch.Generator().manual_seed(SEED)
    folder = tmp_path / "demos"
    folder.mkdir()
    clips = (("a", (21, 24, 24), 8, "push the ball\npull the ball"), ("b", (5, 32, 64), 30, "open the door"))
    for name, size, fps, text in clips:
        write_video(folder / f"{name}.mp4", torch.randint(0, 256, (*size, 3), generator=generator).byte(), fps)
        (folder / f"{name}.txt").write_text(text)
    return read_demos(folder)


def fill(demos: DemoSet, folder: Path, pipe: Any, **changes: Any) -> LatentCache:
    encoders = {"vae": pipe.vae, "text_encoder": pipe.text_encoder, "tokenizer": pipe.tokenizer}
    return fill_latent_cache(demos, folder, **(encoders | SHAPE | changes))


def stamps(folder: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


def relative_rms(x: torch.Tensor, reference: torch.Tensor) -> float:
    x, reference = x.detach(), reference.detach()
    return float((x - reference).square().mean().sqrt() / reference.square().mean().sqrt())


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def test_latents_are_those_of_the_pipeline(demos: DemoSet, tmp_path: Path, pipeline: Any) -> None:
    cache = fill(demos, tmp_path / "cache", pipeline)
    assert len(cache) == 2
    for demo, item in zip(demos, (cache[0], cache[1])):
        frames = demo.frames()
        clip = to_size(frames[uniform_indices(len(frames), 9)], 16, 24)
        assert torch.equal(item.image, clip[0])
        picture = pipeline.video_processor.preprocess(Image.fromarray(clip[0].numpy()), height=16, width=24)
        _, condition = pipeline.prepare_latents(picture, 1, 4, 9, 16, 24, torch.float32, "cpu", generator())
        assert relative_rms(item.image_latents(generator()), condition[0, :1]) < 1e-5
        video = pipeline.video_processor.preprocess_video([Image.fromarray(frame.numpy()) for frame in clip])
        with torch.no_grad():
            latents = pipeline.vae.encode(video).latent_dist.sample(generator())
            decoded = pipeline.decode_latents(item.latents(generator())[None])
            expected = pipeline.vae.decode(latents).sample
        assert item.latents().shape == (3, 4, 2, 3)
        assert relative_rms(item.latents(generator()), latents[0].transpose(0, 1) * 0.7) < 1e-5
        # The pipeline takes them back: its own scaling undoes ours.
        assert relative_rms(decoded, expected) < 1e-5
        assert not torch.equal(item.latents(), item.latents())


def test_texts_are_those_of_the_pipeline(demos: DemoSet, tmp_path: Path, pipeline: Any) -> None:
    cache = fill(demos, tmp_path / "cache", pipeline)
    for demo, item in zip(demos, (cache[0], cache[1])):
        assert item.captions == demo.captions
        with torch.no_grad():
            expected, empty = pipeline.encode_prompt(list(demo.captions), max_sequence_length=12)
        assert item.texts.shape == (len(demo.captions), 12, 8)
        assert relative_rms(item.texts, expected) < 1e-5
        assert relative_rms(cache.no_text(), empty[0]) < 1e-5


def test_the_inverted_factor_of_later_checkpoints(demos: DemoSet, tmp_path: Path, pipeline: Any) -> None:
    before = fill(demos, tmp_path / "cache", pipeline)[0]
    pipeline.vae.register_to_config(invert_scale_latents=True)
    try:
        after = fill(demos, tmp_path / "cache", pipeline)[0]
    finally:
        pipeline.vae.register_to_config(invert_scale_latents=False)
    torch.testing.assert_close(after.image_latents(generator()) * 0.49, before.image_latents(generator()))
    assert torch.equal(after.latents(generator()), before.latents(generator()))


def test_nothing_is_computed_twice(demos: DemoSet, tmp_path: Path, pipeline: Any) -> None:
    folder = tmp_path / "cache"
    first = fill(demos, folder, pipeline)
    before = stamps(folder)
    assert len(before) == 2 + 3 + 1  # clips, captions, and no caption
    assert fill(demos, folder, pipeline).fingerprint == first.fingerprint
    assert stamps(folder) == before
    # Other sizes and weights are other files; the first ones stay.
    other = fill(demos, folder, pipeline, frames=5)
    assert other[0].latents().shape == (2, 4, 2, 3)
    assert other.fingerprint != first.fingerprint
    weight = pipeline.vae.encoder.conv_in.conv.weight
    with torch.no_grad():
        weight.mul_(2)
        fill(demos, folder, pipeline)
        weight.div_(2)
    assert len(stamps(folder)) == len(before) + 4
    assert before.items() <= stamps(folder).items()


def test_an_interrupted_fill_goes_on(
    demos: DemoSet, tmp_path: Path, pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, calls = tmp_path / "cache", []
    real = latent_fill._moments

    def moments(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(latent_fill, "_moments", moments)
    with pytest.raises(KeyboardInterrupt):
        fill(demos, folder, pipeline)
    with pytest.raises(UserError, match="no finished cache"):
        LatentCache(folder)
    cache = fill(demos, folder, pipeline)
    assert len(calls) == 3
    assert cache.fingerprint == fill(demos, tmp_path / "again", pipeline).fingerprint
    assert torch.equal(cache[0].moments, LatentCache(tmp_path / "again")[0].moments)


def test_broken_videos_are_named_after_the_rest_is_done(demos: DemoSet, tmp_path: Path, pipeline: Any) -> None:
    folder = tmp_path / "cache"
    data = demos[0].path.read_bytes()
    demos[0].path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"a\.mp4: .*damaged.*the rest is cached") as caught:
        fill(demos, folder, pipeline)
    assert "\n" not in str(caught.value)
    assert "b.mp4" not in str(caught.value)
    assert len(list((folder / "clips").iterdir())) == 1
    before = stamps(folder)
    broken = Demo("c", demos[0].path.with_name("c.mp4"), demos[0].captions)
    broken.path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"a\.mp4: .*; so are .*c\.mp4; replace"):
        fill(DemoSet(demos.folder, [*demos, broken]), folder, pipeline)
    assert stamps(folder) == before
    demos[0].path.write_bytes(data)
    assert len(fill(demos, folder, pipeline)) == 2
    assert before.items() <= stamps(folder).items()


def test_damaged_files_of_the_cache(demos: DemoSet, tmp_path: Path, pipeline: Any) -> None:
    cache = fill(demos, tmp_path / "cache", pipeline)
    path = next((cache.folder / "clips").iterdir())
    moments = [cache[index].moments for index in range(2)]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=rf"{path.name}: is damaged"):
        _ = [cache[0], cache[1]]
    cache = fill(demos, cache.folder, pipeline)
    assert all(torch.equal(cache[index].moments, moments[index]) for index in range(2))
    path.unlink()
    with pytest.raises(UserError, match=rf"{path.name}: is missing"):
        _ = [cache[0], cache[1]]


def test_no_room_left_is_one_line(demos: DemoSet, tmp_path: Path, pipeline: Any) -> None:
    fill(demos, tmp_path / "cache", pipeline, frames=5)
    before = stamps(tmp_path / "cache")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))  # the disk's end, as far as a file of this process can tell
    try:
        with pytest.raises(RunFailed, match="cannot be written") as caught:
            fill(demos, tmp_path / "cache", pipeline)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert stamps(tmp_path / "cache") == before
    assert len(LatentCache(tmp_path / "cache")) == 2


def test_too_little_memory_is_one_line(
    demos: DemoSet, tmp_path: Path, pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(latent_fill, "_moments", full)
    with pytest.raises(RunFailed, match="lower frames, height or width"):
        fill(demos, tmp_path / "cache", pipeline)


def test_bad_shapes(demos: DemoSet, tmp_path: Path, pipeline: Any) -> None:
    for changes, says in (
        ({"frames": 8}, "frames 8: must be one more than a multiple of 4"),
        ({"frames": 1}, "frames 1"),
        ({"height": 20}, "height 20: must be a positive multiple of 8"),
        ({"width": 0}, "width 0"),
    ):
        with pytest.raises(UserError, match=says):
            fill(demos, tmp_path / "cache", pipeline, **changes)
    assert not (tmp_path / "cache").exists()
    pipeline.text_encoder.train()
    try:
        with pytest.raises(ValueError, match="eval mode"):
            fill(demos, tmp_path / "cache", pipeline)
    finally:
        pipeline.text_encoder.eval()


def test_not_an_index(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished cache"):
        LatentCache(tmp_path)
    for content in ({"format": "something else"}, [], {"format": "genreward latent cache", "version": 1}):
        (tmp_path / "index.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match="is not the index of a cache"):
            LatentCache(tmp_path)
