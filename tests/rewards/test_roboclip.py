"""RoboCLIP: its formula, credit, frames, identity, and where its weights come from."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from genreward_fast.encoders.presets import EncoderConfig, Encoders
from genreward_fast.encoders.s3d_network import TextVideoS3D
from genreward_fast.errors import UserError
from genreward_fast.goals.goal import Goal
from genreward_fast.rewards.base import EncodesWindows, RewardModel, total
from genreward_fast.rewards.config import RewardConfig
from genreward_fast.rewards.registry import make_reward
from genreward_fast.rewards.roboclip import RoboClip
from genreward_fast.rewards.roboclip_config import RoboClipConfig
from genreward_fast.types import Window


class MeanColour:
    """A clip to its mean colour, a sentence to the count of its words: what they give can be worked out by hand."""

    size = 32
    fingerprint = "colour-1"
    note = ""

    def __call__(self, frames: Tensor) -> Tensor:
        return frames.float().mean(dim=(1, 2, 3))

    def text(self, sentence: str) -> Tensor:
        return torch.tensor([float(len(sentence.split())), 0.0, 0.0])


def settings(**changes) -> RewardConfig:
    return dataclasses.replace(RewardConfig(name="roboclip", window=16, interval=16), **changes)


def goal_of(colour: tuple[int, int, int], text: str = "press the button") -> Goal:
    return Goal(text, torch.tensor(colour, dtype=torch.uint8).expand(20, 40, 40, 3).clone(), 19)


def window_of(clip: Tensor, steps: int = 16, fresh: int | None = None) -> Window:
    count = len(clip)
    return Window(clip, None, torch.zeros(count, steps, 2), torch.zeros(count, steps), fresh or steps)


def clip_of(*colours: tuple[int, int, int], frames: int = 4, size: int = 32) -> Tensor:
    """A clip of each colour."""
    return torch.tensor(colours, dtype=torch.uint8)[:, None, None, None].expand(-1, frames, size, size, 3).clone()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The paper's S3D with few words and initial weights, saved under its names with its vocabulary."""
    folder = tmp_path_factory.mktemp("s3d")
    torch.manual_seed(0)
    torch.save(TextVideoS3D(dim=16, words=10, word_dim=4, text_hidden=6).state_dict(), folder / "s3d_howto100m.pth")
    np.save(folder / "s3d_dict.npy", np.array(["press", "the", "button", "open"]))
    return folder


def small(weights, **changes) -> RewardConfig:
    roboclip = {"size": 32, **changes.pop("roboclip", {})}
    return settings(weights=str(weights), roboclip=RoboClipConfig(**roboclip), **changes)


def test_the_reward_of_an_example_by_hand():
    reward = RoboClip(goal_of((10, 0, 20)), MeanColour(), config=settings(credit="closing", scale=0.5))
    parts = reward.parts(window_of(clip_of((1, 2, 3), (100, 50, 0))))
    # 10·1 + 0·2 + 20·3 = 70, 10·100 + 0·50 + 20·0 = 1000
    expected = torch.zeros(2, 16)
    expected[:, -1] = torch.tensor([35.0, 500.0])
    torch.testing.assert_close(parts["roboclip"], expected)
    torch.testing.assert_close(parts["roboclip_raw"], torch.tensor([[70.0], [1000.0]]).expand(2, 16))
    torch.testing.assert_close(total(parts), expected)
    torch.testing.assert_close(reward.score(window_of(clip_of((1, 2, 3), (100, 50, 0)))), expected)


def test_a_goal_in_words_by_hand():
    config = settings(credit="closing", roboclip=RoboClipConfig(goal="text"))
    reward = RoboClip(goal_of((0, 0, 0)), MeanColour(), config=config)
    assert reward.score(window_of(clip_of((7, 8, 9))))[0, -1] == 3 * 7  # three words


@pytest.mark.parametrize("fresh", [16, 5, 1])
def test_spread_pays_the_same_on_the_fresh_rows(fresh):
    shown = window_of(clip_of((1, 2, 3), (4, 5, 6)), fresh=fresh)
    closing = RoboClip(goal_of((1, 1, 1)), MeanColour(), config=settings(credit="closing")).score(shown)
    spread = RoboClip(goal_of((1, 1, 1)), MeanColour(), config=settings(credit="spread")).score(shown)
    assert not closing[:, :-1].any()
    assert not spread[:, : 16 - fresh].any()
    torch.testing.assert_close(spread[:, 16 - fresh :], closing[:, -1:].expand(-1, fresh) / fresh)


def test_it_wants_every_fourth_frame():
    reward = RoboClip(goal_of((1, 1, 1)), MeanColour(), config=settings(window=128, interval=64))
    spec = reward.frames
    assert spec.clip_steps == tuple(range(0, 128, 4))
    assert (spec.window, spec.interval, spec.clip_size, spec.feature_size) == (128, 64, 32, 0)
    assert [row for row in range(12) if spec.sizes_at(row)] == [0, 4, 8]
    assert isinstance(reward, RewardModel)
    assert isinstance(reward, EncodesWindows)
    assert reward.frozen
    assert reward.learn_steps == 0
    assert reward.update(None) == reward.freeze([]) == {}


@pytest.mark.parametrize("goal", ["video", "text"])
def test_saved_weights_give_the_product_of_vectors(weights, goal, fresh_generator):
    config = small(weights, credit="closing", roboclip={"goal": goal})
    task = Goal("press the button", torch.randint(0, 256, (9, 32, 32, 3), dtype=torch.uint8), 8)
    reward = make_reward(config, task, None, 2, "cpu")
    clip = torch.randint(0, 256, (3, 4, 32, 32, 3), dtype=torch.uint8, generator=fresh_generator)
    scores = reward.score(window_of(clip))
    network = TextVideoS3D(dim=16, words=10, word_dim=4, text_hidden=6).eval()
    network.load_state_dict(torch.load(weights / "s3d_howto100m.pth", weights_only=True))
    with torch.no_grad():
        target = network(task.video[[0, 3, 5, 8]].permute(3, 0, 1, 2)[None] / 255)[0]
        if goal == "text":
            target = network.text_module(torch.tensor([[1, 2, 3] + [0] * 13]))[0]
        vectors = network(clip.permute(0, 4, 1, 2, 3) / 255)
    torch.testing.assert_close(scores[:, -1], (vectors * target).sum(dim=1), rtol=1e-4, atol=1e-5)
    one_by_one = torch.cat([reward.score(window_of(one[None])) for one in clip])
    torch.testing.assert_close(scores, one_by_one, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_something_else_is_refused(weights, tmp_path):
    reward = make_reward(small(weights), goal_of((1, 2, 3)), None, 2, "cpu")
    state = reward.state_dict()
    torch.save(state, tmp_path / "state.pt")
    reward.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    make_reward(small(weights, credit="closing", scale=3.0), goal_of((1, 2, 3)), None, 2, "cpu").load_state_dict(state)
    for config, goal, words in (
        (small(weights), goal_of((3, 2, 1)), "goal clip"),
        (small(weights, roboclip={"goal": "text"}), goal_of((1, 2, 3)), "goal"),
        (small(weights, roboclip={"byte_pixels": True}), goal_of((1, 2, 3)), "S3D"),
        (RewardConfig(name="none"), None, "roboclip"),
    ):
        with pytest.raises(UserError, match=words):
            make_reward(config, goal, None, 2, "cpu").load_state_dict(state)


def test_random_weights_say_so():
    encoders = Encoders(EncoderConfig(preset="tiny", weights="random"))
    config = settings(window=32, roboclip=RoboClipConfig(size=32))
    reward = make_reward(config, goal_of((1, 2, 3)), encoders, 2, "cpu")
    assert reward.note == "random weights"
    assert torch.isfinite(reward.score(window_of(clip_of((1, 2, 3), frames=8), 32))).all()


def test_what_is_missing_is_named(weights):
    with pytest.raises(UserError, match=r"--reward-weights FILE.*s3d_howto100m\.pth"):
        make_reward(settings(), goal_of((1, 2, 3)), None, 2, "cpu")
    with pytest.raises(UserError, match="--goal"):
        make_reward(small(weights), None, None, 2, "cpu")
    with pytest.raises(UserError, match=r"--window 4: .* 1 frames.*at least 2"):
        make_reward(small(weights, window=4, clip_frames=4), goal_of((1, 2, 3)), None, 2, "cpu")
    with pytest.raises(UserError, match="none of these words"):
        make_reward(small(weights, roboclip={"goal": "text"}), goal_of((1, 2, 3), "fly away"), None, 2, "cpu")


@pytest.mark.parametrize(("field", "value"), [("goal", "frame"), ("every", 0), ("size", 33), ("size", 16)])
def test_bad_settings(field, value):
    with pytest.raises(UserError, match=field):
        RoboClipConfig(**{field: value})
