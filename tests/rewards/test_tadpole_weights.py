"""Stable Diffusion and AnimateDiff in small, saved by diffusers and loaded through the real path."""

import json
import shutil

import pytest
import torch
from diffusers import AnimateDiffPipeline, MotionAdapter, PNDMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from genreward_fast.encoders.presets import EncoderConfig, Encoders
from genreward_fast.errors import UserError
from genreward_fast.goals.goal import Goal
from genreward_fast.rewards.config import RewardConfig
from genreward_fast.rewards.registry import make_reward
from genreward_fast.rewards.tadpole.architectures import MOTION
from genreward_fast.rewards.tadpole.build import NEGATIVE
from genreward_fast.rewards.tadpole.config import TadpoleConfig
from genreward_fast.rewards.tadpole.small_model import SmallModel
from genreward_fast.rewards.tadpole.weights import read_clip_model, read_picture_model

TEXT = "press the red button"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The folder of a StableDiffusionPipeline with initial weights."""
    folder = tmp_path_factory.mktemp("sd") / "pictures"
    SmallModel([TEXT, "open the door"], 0).save(folder)
    return folder


@pytest.fixture(scope="module")
def motion(tmp_path_factory):
    """The folder of motion modules that fit it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("motion")
    MotionAdapter(**MOTION["tiny"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clips(pictures, motion, tmp_path_factory):
    """The folder of an AnimateDiffPipeline of both, with a schedule of its own."""
    library = StableDiffusionPipeline.from_pretrained(pictures, local_files_only=True)
    animated = AnimateDiffPipeline(
        vae=library.vae,
        text_encoder=library.text_encoder,
        tokenizer=library.tokenizer,
        unet=library.unet,
        motion_adapter=MotionAdapter.from_pretrained(motion),
        scheduler=type(library.scheduler).from_config(library.scheduler.config, beta_schedule="linear"),
    )
    folder = tmp_path_factory.mktemp("animatediff")
    animated.save_pretrained(folder)
    return folder


@pytest.fixture
def copied(pictures, tmp_path):
    return shutil.copytree(pictures, tmp_path / "copy")


@torch.no_grad()
def test_pictures_as_the_library_denoises_them(pictures, fresh_generator):
    model = read_picture_model(str(pictures), TEXT, torch.float32)
    frames = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=fresh_generator)
    noise, levels = torch.randn(2, 4, 16, 16, generator=fresh_generator), torch.tensor([510, 599])
    library = StableDiffusionPipeline.from_pretrained(pictures, local_files_only=True)
    with_text, without = library.encode_prompt([TEXT, TEXT], "cpu", 1, True)
    latents = library.vae.encode(frames.permute(0, 3, 1, 2) / 255 * 2 - 1).latent_dist.mode()
    noisy = library.scheduler.add_noise(latents * library.vae.config.scaling_factor, noise, levels)
    conditional, unconditional = model.predict(model.latents(frames), noise, levels)
    for found, texts in ((conditional, with_text), (unconditional, without)):
        expected = library.unet(noisy, levels, encoder_hidden_states=texts).sample
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (with_text - without).abs().max() > 0.1


@torch.no_grad()
def test_clips_as_the_library_denoises_them(clips, fresh_generator):
    model = read_clip_model(str(clips), "", TEXT, NEGATIVE, torch.float32)
    frames = torch.randint(0, 256, (2, 5, 64, 64, 3), dtype=torch.uint8, generator=fresh_generator)
    noise, levels = torch.randn(2, 5, 4, 16, 16, generator=fresh_generator), torch.tensor([510, 599])
    library = AnimateDiffPipeline.from_pretrained(clips, local_files_only=True)
    with_text, without = library.encode_prompt(TEXT, "cpu", 1, True, NEGATIVE)
    latents = library.vae.encode(frames.flatten(0, 1).permute(0, 3, 1, 2) / 255 * 2 - 1).latent_dist.mode()
    latents = latents.view(2, 5, 4, 16, 16) * library.vae.config.scaling_factor
    noisy = library.scheduler.add_noise(latents, noise, levels).transpose(1, 2)
    ours = torch.stack([model.latents(clip) for clip in frames])
    torch.testing.assert_close(ours, latents, rtol=1e-4, atol=1e-5)
    conditional, unconditional = model.predict(ours, noise, levels)
    for found, texts in ((conditional, with_text), (unconditional, without)):
        expected = library.unet(noisy, levels, encoder_hidden_states=texts.repeat(10, 1, 1)).sample
        torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-4, atol=1e-5)


def test_a_model_of_pictures_with_motion_modules_is_the_same_as_the_pipeline(pictures, clips, motion):
    both = read_clip_model(str(pictures), str(motion), TEXT, NEGATIVE, torch.float32)
    assert both.fingerprint == read_clip_model(str(clips), "", TEXT, NEGATIVE, torch.float32).fingerprint
    assert both.max_frames == 32
    assert both.fingerprint != read_clip_model(str(clips), "", "open the door", NEGATIVE, torch.float32).fingerprint


def test_the_fingerprint_is_the_weights_whatever_the_precision(pictures):
    single, half = (read_picture_model(str(pictures), TEXT, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert single.fingerprint == half.fingerprint
    assert next(half.unet.parameters()).dtype == torch.bfloat16
    noise = torch.randn(1, 4, 16, 16)
    predicted = [model.predict(noise, noise, torch.tensor([550]))[0] for model in (single, half)]
    assert predicted[1].dtype == torch.float32
    assert (predicted[1] - predicted[0]).norm() < 0.05 * predicted[0].norm()


@pytest.mark.parametrize("name", ["tadpole", "video-tadpole"])
def test_by_its_name(name, pictures, motion):
    adapter = str(motion) if name == "video-tadpole" else ""
    config = RewardConfig(
        name=name, weights=str(pictures), window=8, clip_frames=4, tadpole=TadpoleConfig(motion_adapter=adapter)
    )
    goal = Goal(TEXT, torch.zeros(2, 8, 8, 3, dtype=torch.uint8), 1)
    reward = make_reward(config, goal, None, 2, "cpu", seed=5)
    assert reward.note == ""
    assert reward.state_dict()["identity"]["goal text"] == TEXT
    with pytest.raises(UserError, match="--goal"):
        make_reward(config, None, None, 2, "cpu")


@pytest.mark.parametrize("name", ["tadpole", "video-tadpole"])
def test_weights_that_are_not_there(name):
    words = {"tadpole": "genreward fit tadpole", "video-tadpole": "--motion-adapter"}[name]
    goal = Goal(TEXT, torch.zeros(2, 8, 8, 3, dtype=torch.uint8), 1)
    config = RewardConfig(name=name)
    with pytest.raises(UserError, match=f"--reward-weights .*{words}"):
        make_reward(config, goal, Encoders(EncoderConfig(preset="tiny")), 2, "cpu")
    reward = make_reward(config, goal, Encoders(EncoderConfig(preset="tiny", weights="random")), 2, "cpu")
    assert reward.note == "random weights"


def test_folders_of_something_else(copied, pictures, clips, motion, tmp_path):
    cases = [
        (lambda: read_picture_model("nowhere", TEXT, torch.float32), "nowhere: no such folder.*--reward-weights"),
        (lambda: read_picture_model(str(clips), TEXT, torch.float32), "AnimateDiffPipeline, not StableDiffusion"),
        (lambda: read_picture_model(str(tmp_path), TEXT, torch.float32), r"model_index\.json: no such file"),
        (lambda: read_clip_model(str(pictures), "", TEXT, "", torch.float32), "no motion modules.*--motion-adapter"),
        (lambda: read_clip_model(str(clips), str(motion), TEXT, "", torch.float32), "motion modules of its own"),
        (lambda: read_clip_model(str(pictures), str(pictures / "vae"), TEXT, "", torch.float32), "not MotionAdapter"),
    ]
    for read, words in cases:
        with pytest.raises(UserError, match=words):
            read()


@pytest.mark.parametrize(
    ("part", "file", "kind"),
    [
        ("unet", "diffusion_pytorch_model.safetensors", "misshaped"),
        ("vae", "diffusion_pytorch_model.safetensors", "missing"),
        ("text_encoder", "model.safetensors", "foreign"),
    ],
)
def test_weights_that_do_not_fit(copied, part, file, kind):
    tensors = load_file(copied / part / file)
    name = sorted(tensors)[0]
    if kind == "missing":
        del tensors[name]
    elif kind == "foreign":
        tensors["more.weight"] = torch.zeros(1)
    else:
        tensors[name] = torch.zeros(7)
    save_file(tensors, copied / part / file)
    with pytest.raises(UserError, match=f"{part}.*1 {kind} tensors"):
        read_picture_model(str(copied), TEXT, torch.float32)


def test_positions_in_older_files_do_no_harm(copied):
    path = copied / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    prefix = "text_model." if any(name.startswith("text_model.") for name in tensors) else ""
    save_file(tensors | {f"{prefix}embeddings.position_ids": torch.arange(77)[None]}, path, {"format": "pt"})
    read_picture_model(str(copied), TEXT, torch.float32)


def test_the_schedule_of_another_sampler_is_the_same(copied, pictures, caplog):
    library = StableDiffusionPipeline.from_pretrained(copied, local_files_only=True)
    other = PNDMScheduler.from_config(library.scheduler.config, skip_prk_steps=True)
    other.save_pretrained(copied / "scheduler")
    caplog.clear()
    found, expected = (read_picture_model(str(folder), TEXT, torch.float32) for folder in (copied, pictures))
    assert not caplog.records
    assert torch.equal(found.alphas, expected.alphas)
    assert found.fingerprint == expected.fingerprint
    content = json.loads((copied / "scheduler" / "scheduler_config.json").read_text())
    (copied / "scheduler" / "scheduler_config.json").write_text(json.dumps(content | {"prediction_type": "sample"}))
    with pytest.raises(UserError, match="predicts sample"):
        read_picture_model(str(copied), TEXT, torch.float32)


def test_damaged_parts_are_named(copied):
    (copied / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="not usable as a tokenizer"):
        read_picture_model(str(copied), TEXT, torch.float32)
    (copied / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="unet: not usable as UNet2DConditionModel"):
        read_picture_model(str(copied), TEXT, torch.float32)
    shutil.rmtree(copied / "unet")
    with pytest.raises(UserError, match=r"unet/config\.json: no such file"):
        read_picture_model(str(copied), TEXT, torch.float32)
