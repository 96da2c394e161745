"""Our videos are those of diffusers' unmodified pipeline, whatever makes them faster."""

import json

import numpy as np
import pytest
import torch
from diffusers import CogVideoXImageToVideoPipeline
from PIL import Image

from genreward_fast.cli import main
from genreward_fast.errors import RunFailed, UserError
from genreward_fast.goals.generate import generate, parse_size, read_image
from genreward_fast.goals.generation import GenerationConfig, VideoGenerator, VideoSize, fit_image
from genreward_fast.goals.text_embeddings import TextEmbeddings
from genreward_fast.goals.video_io import read_video
from genreward_fast.goals.video_model import explaining_out_of_memory, read_pipeline

TEXT = "pick up the ball"


@pytest.fixture
def picture(fresh_generator) -> torch.Tensor:
    """(32, 32, 3) uint8."""
    return torch.randint(0, 256, (32, 32, 3), generator=fresh_generator, dtype=torch.uint8)


def embed(folder) -> torch.Tensor:
    return TextEmbeddings(folder, length=12, dtype=torch.float32, device="cpu")([TEXT, ""])


def ours(folder, picture, **settings) -> dict[int, torch.Tensor]:
    generator = VideoGenerator(read_pipeline(folder), GenerationConfig(**({"steps": 3} | settings)))
    generator.pipeline.set_progress_bar_config(disable=True)
    return dict(generator.generate(picture, *embed(folder)))


def theirs(folder, picture, seed=0, guidance=6.0, frames=9) -> torch.Tensor:
    pipeline = CogVideoXImageToVideoPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    video = pipeline(
        Image.fromarray(picture.numpy()), TEXT, num_frames=frames, num_inference_steps=3, guidance_scale=guidance,
        generator=torch.Generator().manual_seed(seed), max_sequence_length=12, output_type="np",
    ).frames[0]  # fmt: skip
    return torch.from_numpy((video * 255).round().astype(np.uint8))


def assert_same_video(a: torch.Tensor, b: torch.Tensor) -> None:
    """Up to rounding: a value that lies between two integers may go either way."""
    difference = (a.int() - b.int()).abs()
    assert a.shape == b.shape
    assert difference.max() <= 1
    assert difference.float().mean() < 0.01


@pytest.mark.parametrize("dpm", [False, True])
@pytest.mark.parametrize("guidance", [1.0, 6.0])
def test_videos_are_the_pipelines(tmp_path, save_model, picture, dpm, guidance):
    folder = save_model(tmp_path, dpm=dpm)
    made = ours(folder, picture, seed=5, guidance=guidance)
    assert list(made) == [5]
    assert made[5].shape == (9, 32, 32, 3)
    assert_same_video(made[5], theirs(folder, picture, 5, guidance))


def test_videos_of_version_1_5_are_the_pipelines(tmp_path, save_model, picture):
    sizes = {"sample_height": 6, "sample_width": 8, "patch_size_t": 2, "ofs_embed_dim": 16}
    folder = save_model(tmp_path, vae={"invert_scale_latents": True}, **sizes)
    wide = picture.repeat(2, 2, 1)[:48]
    assert_same_video(ours(folder, wide)[0], theirs(folder, wide))


@pytest.mark.parametrize("dpm", [False, True])
def test_a_candidate_is_the_same_in_any_batch(tmp_path, save_model, picture, dpm):
    folder = save_model(tmp_path, dpm=dpm)
    alone = ours(folder, picture, seed=3, candidates=3)
    together = ours(folder, picture, seed=3, candidates=3, batch=2)
    assert list(alone) == list(together) == [3, 4, 5]
    for seed, video in alone.items():
        assert_same_video(video, together[seed])
    assert (alone[3].int() - alone[4].int()).abs().float().mean() > 1


@pytest.mark.parametrize("attention", ["math", "flash"])
def test_attention_changes_rounding_only(model, picture, attention):
    assert_same_video(ours(model, picture, attention=attention)[0], ours(model, picture)[0])


def test_an_approximation_that_skips_nothing_changes_nothing(model, picture):
    assert_same_video(ours(model, picture, approximate="first-block", threshold=0.0)[0], ours(model, picture)[0])


def test_an_approximation_skips_steps_in_every_video(model, picture):
    generator = VideoGenerator(
        read_pipeline(model), GenerationConfig(steps=3, candidates=2, approximate="first-block", threshold=1e6)
    )
    generator.pipeline.set_progress_bar_config(disable=True)
    computed = []
    last = generator.pipeline.transformer.transformer_blocks[-1]
    last.attn1.register_forward_hook(lambda *_: computed.append(1))
    videos = dict(generator.generate(picture, *embed(model)))
    assert len(computed) == 2  # the first step of each video
    exact = ours(model, picture, candidates=2)
    for seed, video in videos.items():
        assert 0 < (video.int() - exact[seed].int()).abs().float().mean() < 64


@pytest.mark.slow
def test_an_approximation_works_compiled(model, picture):
    settings = {"approximate": "first-block", "threshold": 1e6}
    assert_same_video(ours(model, picture, compile=True, **settings)[0], ours(model, picture, **settings)[0])


@pytest.mark.slow
def test_compiling_changes_rounding_only(model, picture):
    assert_same_video(ours(model, picture, compile=True)[0], ours(model, picture)[0])


def test_texts_are_embedded_once(model, monkeypatch):
    first = embed(model)
    pipeline = CogVideoXImageToVideoPipeline.from_pretrained(model)
    with torch.no_grad():
        expected, empty = pipeline.encode_prompt(TEXT, max_sequence_length=12)
    torch.testing.assert_close(first, torch.cat([expected, empty]), rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(TextEmbeddings, "_compute", lambda *_: pytest.fail("computed again"))
    assert torch.equal(embed(model), first)


def test_embeddings_depend_on_the_encoder_and_survive_damage(tmp_path, model, save_model):
    other = save_model(tmp_path / "other", seed=1)
    first = embed(model)
    assert not torch.allclose(embed(other), first)
    cache = tmp_path / "cache" / "text"
    files = sorted(cache.iterdir())
    assert len(files) == 4
    for file in files:
        file.write_bytes(b"x")
    assert torch.equal(embed(model), first)


def test_the_picture_is_cropped_to_the_videos_shape():
    wide = torch.zeros(40, 120, 3, dtype=torch.uint8)
    wide[:, 40:80] = 200  # the centre square of a third
    assert np.array(fit_image(wide, VideoSize(9, 32, 32))).shape == (32, 32, 3)
    assert np.array(fit_image(wide, VideoSize(9, 32, 32))).min() == 200
    exact = torch.arange(32 * 32 * 3, dtype=torch.int64).remainder(256).to(torch.uint8).view(32, 32, 3)
    assert np.array_equal(np.array(fit_image(exact, VideoSize(9, 32, 32))), exact.numpy())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"frames": 10}, "--frames 10: must be a multiple of 4 plus 1"),
        ({"height": 40}, "--size 40x32: both must be multiples of 16"),
        ({"steps": 1001}, "--steps 1001: the model's schedule has 1000"),
        ({"candidates": 0}, "--candidates 0"),
        ({"guidance": -1.0}, "--guidance -1.0"),
        ({"attention": "fast"}, "--attention fast: use one of auto, cudnn"),
        ({"approximate": "fast"}, "--approximate fast: use one of none, first-block, attention-broadcast"),
        ({"threshold": -1.0}, "--threshold -1.0: must not be negative"),
    ],
)
def test_settings_without_sense_are_refused(model, settings, says):
    with pytest.raises(UserError, match=says):
        VideoGenerator(read_pipeline(model), GenerationConfig(**settings))


def test_a_model_with_learned_positions_knows_one_size(tmp_path, save_model):
    pipeline = read_pipeline(save_model(tmp_path, use_learned_positional_embeddings=True))
    with pytest.raises(UserError, match="knows 32x32 only"):
        VideoGenerator(pipeline, GenerationConfig(height=48, width=32))


def test_out_of_memory_keeps_what_is_written(tmp_path, model, picture, monkeypatch):
    Image.fromarray(picture.numpy()).save(tmp_path / "first.png")
    batch = VideoGenerator._batch

    def no_memory_for_seed_1(self, first, text, empty_text, seeds):
        if 1 in seeds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch(self, first, text, empty_text, seeds)

    monkeypatch.setattr(VideoGenerator, "_batch", no_memory_for_seed_1)
    config = GenerationConfig(steps=2, candidates=3)
    with pytest.raises(RunFailed, match="out of memory generating a video; lower --batch"):
        generate(
            TEXT, tmp_path / "first.png", "paper", str(model), None, tmp_path / "v.mp4", config, fps=8,
            device=torch.device("cpu"),
        )  # fmt: skip
    assert read_video(tmp_path / "v-seed0.mp4")[0].shape == (9, 32, 32, 3)
    assert sorted(path.name for path in tmp_path.glob("*.mp4")) == ["v-seed0.mp4"]


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"), RunFailed),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), RunFailed),
        (RuntimeError("shapes do not fit"), RuntimeError),
    ],
)
def test_only_lack_of_memory_is_called_so(error, becomes):
    with pytest.raises(becomes) as raised, explaining_out_of_memory("trying", "lower it"):
        raise error
    assert type(raised.value) is becomes
    if becomes is RunFailed:
        assert str(raised.value) == "out of memory trying; lower it"


def test_sizes_and_pictures_from_the_command_line(tmp_path):
    assert parse_size("480x720") == (480, 720)
    assert parse_size(None) == (None, None)
    for bad in ("480", "480x", "ax3", "-1x4"):
        with pytest.raises(UserError, match="HEIGHTxWIDTH"):
            parse_size(bad)
    with pytest.raises(UserError, match="no such file"):
        read_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match="not readable as a picture"):
        read_image(tmp_path / "text.png")


def test_the_commands_from_data_to_video(tmp_path, model, data, save_model, picture, capsys):
    Image.fromarray(picture.numpy()).save(tmp_path / "first.png")
    run, out = tmp_path / "run", tmp_path / "video.mp4"
    common = ["--model", str(model), "--device", "cpu"]
    train = ["finetune", "--data", str(data), "--out", str(run), "--lora-rank", "4", "--steps", "2", "--warmup", "0"]
    assert main([*train, "--lr", "0.05", "--ema-decay", "0", *common]) == 0
    assert f"everything is in {run}" in capsys.readouterr().out

    make = ["generate", "--text", TEXT, "--image", str(tmp_path / "first.png"), "--steps", "2", "--device", "cpu"]
    assert main([*make, "--out", str(out), "--model", str(model), "--lora", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    video, fps = read_video(out)
    assert video.shape == (9, 32, 32, 3)
    assert fps == 8
    before = out.read_bytes()
    other = save_model(tmp_path / "other", seed=1)
    for arguments, says in (
        ([*make, "--out", str(out), "--model", str(model)], "exists already"),
        ([*make, "--out", str(tmp_path / "a.mp4"), "--model", str(other), "--lora", str(run)], "another base model"),
        ([*make, "--out", str(tmp_path / "a.avi"), "--model", str(model)], "must end in .mp4"),
        ([*make, "--out", str(tmp_path / "a.mp4"), "--preset", "tiny"], "has no trained video model"),
        ([*train, "--full", *common], "leave --lora-rank out"),
    ):
        assert main(arguments) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("genreward: ")
        assert says in line
    assert out.read_bytes() == before
    assert not (tmp_path / "a.mp4").exists()


def test_a_lora_without_a_record_is_checked_by_its_layers(tmp_path, model, data, save_model, picture):
    from genreward_fast.goals.finetune.start import finetune
    from genreward_fast.goals.lora import load_lora

    settings = {"lora_rank": 4, "steps": 1, "warmup": 0}
    finetune(data, "paper", str(model), tmp_path / "run", resume=False, device=torch.device("cpu"), settings=settings)
    (tmp_path / "run" / "finetune.json").unlink()
    load_lora(read_pipeline(model), tmp_path / "run")
    with pytest.raises(UserError, match=r"made for another base model, which has transformer_blocks\.1"):
        load_lora(read_pipeline(save_model(tmp_path / "shallow", num_layers=1)), tmp_path / "run")
    with pytest.raises(UserError, match="not usable as a LoRA of this base model"):
        load_lora(read_pipeline(save_model(tmp_path / "wide", num_attention_heads=3)), tmp_path / "run")
    with pytest.raises(UserError, match="no such file; --lora is the folder"):
        load_lora(read_pipeline(model), tmp_path)
    weights = tmp_path / "run" / "pytorch_lora_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(UserError, match="damaged"):
        load_lora(read_pipeline(model), tmp_path / "run")


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda m: (m / "model_index.json").unlink(), "model_index.json: no such file"),
        (lambda m: (m / "model_index.json").write_text('{"_class_name": "X"}'), "holds X, not CogVideoXImageToVideo"),
        (lambda m: (m / "scheduler" / "scheduler_config.json").write_text("{}"), "holds None, not one of"),
        (lambda m: next((m / "transformer").glob("*.safetensors")).unlink(), "no .safetensors file"),
        (lambda m: next((m / "vae").glob("*.safetensors")).write_bytes(b"x"), "not usable as a CogVideoX autoencoder"),
        (lambda m: edit(m / "transformer" / "config.json", num_layers=3), "missing tensors"),
        (lambda m: edit(m / "transformer" / "config.json", time_embed_dim=20), "transformer: not usable as"),
        (lambda m: edit(m / "transformer" / "config.json", in_channels=16), "takes no first frame"),
    ],
)
def test_a_broken_model_is_named(tmp_path, save_model, break_it, says):
    from genreward_fast.goals.video_model import model_folder

    break_it(save_model(tmp_path))
    with pytest.raises(UserError, match=says) as refused:
        read_pipeline(model_folder(str(tmp_path)))
    assert "\n" not in str(refused.value)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
