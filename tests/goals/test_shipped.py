"""The weights that ship are loaded by preset tiny, are small, and do what their cards say."""

import pytest
import torch
from torch.nn import functional

from genreward_fast.config import Overrides, resolve
from genreward_fast.encoders.presets import EncoderConfig, Encoders
from genreward_fast.encoders.video import read_vae
from genreward_fast.envs.env_config import EnvConfig
from genreward_fast.envs.expert import expert_success
from genreward_fast.envs.tasks import describe
from genreward_fast.errors import UserError
from genreward_fast.goals.assets.plan import MAX_BYTES
from genreward_fast.goals.assets.saving import CARD, sizes
from genreward_fast.goals.assets.vae import to_pixels
from genreward_fast.goals.frames import uniform_indices
from genreward_fast.goals.generated_goal import goal_from_generator
from genreward_fast.goals.generation import GenerationConfig
from genreward_fast.goals.selection import select_frame
from genreward_fast.goals.video_model import model_source
from genreward_fast.training.start import generates

SEED = 987_654  # of no recording


def test_they_are_whole_and_small(shipped_weights):
    found = sizes(shipped_weights)
    assert set(found) == {"vae", "dino", "clip", "generator"}
    assert sum(found.values()) <= MAX_BYTES
    for part in found:
        card = (shipped_weights / part / CARD).read_text()
        assert "Steps: " in card
        assert "Limits: " in card
    assert EncoderConfig(preset="tiny").note == ""
    assert EncoderConfig(preset="tiny", weights="untrained").note == "untrained encoders"


def test_they_see_what_an_expert_does(shipped_weights):
    episode = expert_success(EnvConfig(task="button-press-topdown"), SEED, (128,))
    frames = torch.from_numpy(episode.frames[128])
    vae = read_vae(str(shipped_weights / "vae")).eval()
    clip = to_pixels(frames[uniform_indices(len(frames), 16)][None])
    with torch.no_grad():
        decoded = vae.decode(vae.encode(clip).latent_dist.mean).sample.clamp(-1, 1)
    constant = functional.mse_loss(clip.mean(2, keepdim=True).expand_as(clip), clip)
    assert functional.mse_loss(decoded, clip) < constant  # than the mean picture, which is most of a clip
    encoders = Encoders(EncoderConfig(preset="tiny"), torch.device("cpu"))
    chosen = select_frame(frames, describe("button-press-topdown"), encoders.text_image)
    assert chosen.index >= len(frames) // 2
    features = encoders.image(frames)
    apart = (features - features[-1]).norm(dim=1)
    assert apart[len(frames) // 2 : -1].mean() < apart[: len(frames) // 2].mean()


def test_a_goal_is_generated(shipped_weights):
    config = resolve("tiny", Overrides(task="reach"))
    assert generates(config, "auto")
    assert not generates(config, "expert")
    assert not generates(resolve("tiny", Overrides(task="reach", camera="corner2")), "auto")
    assert not generates(resolve("paper", Overrides(task="reach")), "auto")
    assert model_source("tiny", None) == str(shipped_weights / "generator")
    assert model_source("tiny", "elsewhere") == "elsewhere"
    with pytest.raises(UserError, match="genreward generate"):
        generates(resolve("paper", Overrides(task="reach")), "generated")
    with pytest.raises(UserError, match="knows corner and fast only"):
        goal_from_generator("reach", camera="corner2")
    goal = goal_from_generator("reach", seed=SEED, select="last", config=GenerationConfig(steps=4, guidance=1.0))
    assert goal.video.shape == (17, 128, 128, 3)
    assert goal.provenance["source"] == "the shipped image-to-video model"
    first = torch.from_numpy(expert_success(EnvConfig(task="reach"), SEED, (128,)).frames[128][0]).float()
    near = (goal.video[0].float() - first).abs().mean()
    assert near < 12  # grey levels: it begins with the frame that it was given
    assert (goal.video[-1].float() - first).abs().mean() > near
