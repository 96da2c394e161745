"""The tiny image-to-video model learns, and its folder is what diffusers and the goal path read."""

from dataclasses import replace

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXImageToVideoPipeline
from PIL import Image

from genreward_fast.encoders.architectures import build_vae
from genreward_fast.encoders.video import read_vae
from genreward_fast.goals.assets.generator import (
    caption_table,
    generator_losses,
    train_generator,
    video_frames,
)
from genreward_fast.goals.assets.generator_measure import measure_generator
from genreward_fast.goals.assets.generator_model import (
    FRAMES,
    TOKENS,
    TRANSFORMER,
    Generator,
    build_tokenizer,
    token_ids,
)
from genreward_fast.goals.assets.loop import LoopConfig
from genreward_fast.goals.assets.recordings import Episode
from genreward_fast.goals.assets.saving import sizes
from genreward_fast.goals.captions import captions
from genreward_fast.goals.finetune.conditioning import Conditioning
from genreward_fast.goals.generation import GenerationConfig
from genreward_fast.goals.video_model import read_pipeline
from genreward_fast.goals.video_model_configs import SCHEDULER

SMALL = TRANSFORMER | {"num_attention_heads": 1, "num_layers": 1, "sample_width": 8, "sample_height": 8}


def test_a_video_ends_shortly_after_the_success_and_may_begin_later():
    episode = Episode("reach", "expert", False, start=100, length=40, solved_from=30)
    whole, later = video_frames(episode), video_frames(episode, 1 / 3)
    assert (whole[0], whole[-1], len(whole)) == (100, 132, FRAMES)
    assert (later[0], later[-1]) == (110, 132)
    assert (whole.diff() >= 0).all()
    short = video_frames(replace(episode, length=31))
    assert short[-1] == 130
    with pytest.raises(ValueError, match="without a success"):
        video_frames(replace(episode, solved_from=None))


def test_the_tokenizer_knows_every_caption_and_spells_what_it_does_not_know():
    tokenizer = build_tokenizer()
    tasks, table = caption_table(tokenizer, ["reach", "pick-place"])
    assert table.shape[2] == TOKENS
    assert not (table == tokenizer.unk_token_id).any()
    assert (table == tokenizer.eos_token_id).sum() == table.shape[0] * table.shape[1]  # none is cut off
    text = captions("pick-place")[0]
    assert tokenizer.decode(table[tasks[1], 0], skip_special_tokens=True) == text
    unknown = token_ids(tokenizer, ["zebra"])[0]
    assert tokenizer.decode(unknown, skip_special_tokens=True) == "zebra"


def test_the_loss_falls_and_weighs_what_changes(fresh_generator):
    generator = Generator(len(build_tokenizer()), 0, SMALL)
    conditioning = Conditioning(generator.transformer.config, {"scaling_factor": 1.0, "latent_channels": 16})
    scheduler = CogVideoXDDIMScheduler(**SCHEDULER)
    still = torch.randn(2, 16, 1, 8, 8, generator=fresh_generator).expand(-1, -1, 5, -1, -1)
    tokens = torch.ones(2, TOKENS, dtype=torch.int64)
    optimizer = torch.optim.Adam(generator.parameters(), lr=3e-3)
    found = []
    for step in range(30):
        draws = torch.Generator().manual_seed(step % 3)
        losses = generator_losses(generator, conditioning, scheduler, still, still[:, :, 0], tokens, draws)
        # A video that stands still is weighed evenly.
        torch.testing.assert_close(losses["loss"], losses["error"], rtol=1e-4, atol=1e-5)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        found.append(losses["loss"].item())
    assert sum(found[-3:]) < 0.9 * sum(found[:3])
    before = generator.average.proj_out.weight.clone()
    generator.follow(0.0)
    moved = (generator.average.proj_out.weight - before).abs().sum()
    assert 0 < moved < (generator.transformer.proj_out.weight - before).abs().sum()


def test_it_is_built_measured_and_read_by_the_unmodified_library(toy, recordings):
    folder, _ = toy
    build_vae("tiny", 0).half().save_pretrained(folder.weights("vae"))
    config = LoopConfig(2, lr=1e-3, warmup=1)
    trained = train_generator(recordings, folder, config, batch=1, transformer=SMALL)
    assert trained.steps == 2
    found = measure_generator(recordings, folder, ("drawer-open",), sampler=GenerationConfig(steps=1, guidance=1))
    assert found["starts"] == 3
    assert {"nearer", "nearer_tasks", "nearer_latents"} <= set(found)
    with Image.open(folder.measured("generator").with_suffix(".png")) as sheet:
        assert sheet.width > 5 * 3 * 90
    root = folder.weights("generator")
    assert not (root / "vae").exists()
    assert sizes(folder.root / "tiny")["generator"] < 4e6
    ours = read_pipeline(root)
    theirs = CogVideoXImageToVideoPipeline.from_pretrained(
        root, vae=read_vae(str(folder.weights("vae"))), torch_dtype=torch.float32
    )
    for name, value in theirs.transformer.state_dict().items():
        torch.testing.assert_close(ours.transformer.state_dict()[name], value.float())
    video = theirs(
        image=Image.new("RGB", (64, 64)), prompt="push the button", height=64, width=64, num_frames=FRAMES,
        num_inference_steps=1, guidance_scale=1.0, output_type="np", max_sequence_length=TOKENS,
    ).frames  # fmt: skip
    assert video.shape == (1, FRAMES, 64, 64, 3)
