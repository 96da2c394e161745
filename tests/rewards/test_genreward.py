import dataclasses
import io

import pytest
import torch

from genreward_fast.encoders import presets
from genreward_fast.encoders.presets import EncoderConfig, load_video_encoder
from genreward_fast.errors import UserError
from genreward_fast.goals.goal import Goal
from genreward_fast.rewards.base import RewardModel, total
from genreward_fast.rewards.genreward import GenReward


@pytest.fixture
def make(reward_config, tiny_goal, video_encoder, image_encoder):
    def build(goal=None, config=None, action_size=2, seed=0, **encoders):
        encoders = {"video_encoder": video_encoder, "image_encoder": image_encoder, **encoders}
        return GenReward(
            goal or tiny_goal,
            config=config or reward_config,
            action_size=action_size,
            device="cpu",
            seed=seed,
            **encoders,
        )

    return build


@pytest.fixture
def frozen(make, pairs):
    reward = make()
    reward.update(pairs(32))
    reward.freeze([pairs(32)])
    return reward


def test_it_keeps_the_contract(make):
    reward = make()
    assert isinstance(reward, RewardModel)
    assert reward.learn_steps == 100
    assert not reward.frozen
    spec = reward.frames
    assert (spec.window, spec.interval, spec.clip_size, spec.clip_steps) == (12, 12, 8, (0, 4, 7, 11))
    assert (spec.feature_size, spec.feature_dim) == (6, 5)
    assert reward.features(torch.zeros(3, 6, 6, 3, dtype=torch.uint8)).shape == (3, 5)


@pytest.mark.parametrize("credit", ["closing", "spread"])
@pytest.mark.parametrize("fresh", [12, 5])
def test_the_parts_sum_to_the_score(make, reward_config, window, pairs, credit, fresh):
    reward = make(config=dataclasses.replace(reward_config, credit=credit))
    reward.freeze([pairs(32)])
    shown = window(reward_config, fresh=fresh)
    parts = reward.parts(shown)
    assert set(parts) == {"video", "video_raw", "fb", "fb_raw"}
    assert all(value.shape == (3, 12) for value in parts.values())
    torch.testing.assert_close(reward.score(shown), parts["video"] + parts["fb"])
    torch.testing.assert_close(total(parts), reward.score(shown))
    assert parts["fb"].abs().sum() > 0


def test_both_credits_pay_the_same_for_the_video(make, reward_config, window):
    for fresh in (12, 5, 1):
        shown = window(reward_config, fresh=fresh)
        spread = make(config=dataclasses.replace(reward_config, credit="spread")).parts(shown)
        closing = make(config=dataclasses.replace(reward_config, credit="closing")).parts(shown)
        torch.testing.assert_close(spread["video"].sum(1), closing["video"].sum(1))
        torch.testing.assert_close(closing["video"].sum(1), 2.0 * closing["video_raw"][:, 0])
        assert not closing["video"][:, :-1].any()
        assert not spread["video"][:, : 12 - fresh].any()
        torch.testing.assert_close(spread["video"][:, 12 - fresh :], spread["video"][:, -1:].expand(-1, fresh))


def test_rows_that_an_earlier_window_paid_get_nothing_more(frozen, reward_config, window):
    shown = window(reward_config, fresh=4)
    parts = frozen.parts(shown)
    expected = 0.5 * frozen._fb.standardised(parts["fb_raw"])
    torch.testing.assert_close(parts["fb"][:, 8:], expected[:, 8:])
    assert not parts["fb"][:, :8].any()


def test_closing_pays_fb_at_the_last_state_and_action(make, reward_config, window, pairs):
    reward = make(config=dataclasses.replace(reward_config, credit="closing"))
    reward.freeze([pairs(32)])
    shown = window(reward_config)
    raw = reward._fb.score(shown.features[:, -1], shown.action[:, -1])
    fb = reward.parts(shown)["fb"]
    torch.testing.assert_close(fb[:, -1], 0.5 * reward._fb.standardised(raw))
    assert not fb[:, :-1].any()


def test_fb_pays_nothing_until_it_is_frozen(make, reward_config, window, pairs):
    reward = make()
    shown = window(reward_config)
    assert not reward.parts(shown)["fb"].any()
    assert reward.parts(shown)["fb_raw"].any()
    assert reward.update(pairs(32))
    assert not reward.parts(shown)["fb"].any()
    assert reward.freeze([pairs(32)])
    assert reward.frozen
    assert reward.parts(shown)["fb"].any()
    before = reward.score(shown)
    assert reward.update(pairs(32)) == {}
    assert reward.freeze([pairs(32, seed=5)]) == {}
    assert torch.equal(reward.score(shown), before)


def test_the_goal_itself_is_worth_one(make, reward_config, window, tiny_goal, video_encoder):
    reward = make()
    assert video_encoder.calls == 1
    shown = window(reward_config, count=2)
    clip = torch.stack([tiny_goal.clip(4, 8), 255 - tiny_goal.clip(4, 8)])
    cosine = reward.parts(dataclasses.replace(shown, clip=clip))["video_raw"]
    assert cosine[0, 0].item() == pytest.approx(1, abs=1e-5)
    assert cosine[1, 0].item() == pytest.approx(-1, abs=1e-5)
    reward.score(shown)
    assert video_encoder.calls == 3  # the goal is not encoded again


@pytest.mark.parametrize("value", [0, 128, 255])
def test_constant_frames_are_finite(frozen, reward_config, window, value):
    shown = window(reward_config)
    constant = dataclasses.replace(
        shown, clip=torch.full_like(shown.clip, value), features=torch.zeros_like(shown.features)
    )
    assert frozen.score(constant).isfinite().all()


@pytest.mark.parametrize("value", [0, 128, 255])
def test_constant_frames_are_finite_with_a_real_encoder(make, reward_config, window, value):
    config = EncoderConfig(preset="tiny", clip_frame_size=16, clip_length=4)
    encoder = load_video_encoder(config)
    constant = torch.full((4, 16, 16, 3), value, dtype=torch.uint8)
    only_video = dataclasses.replace(reward_config, use_fb=False)
    shown = dataclasses.replace(window(only_video), clip=torch.stack([constant, 255 - constant, constant // 2]))
    for video in (constant, torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand_as(constant)):
        reward = make(goal=Goal("still", video, 0), config=only_video, video_encoder=encoder)
        cosine = reward.parts(shown)["video_raw"]
        assert cosine.isfinite().all()
        assert cosine.abs().max() <= 1 + 1e-5


@pytest.mark.parametrize("side", ["width", "height"])
def test_a_goal_video_of_another_shape_is_cropped_to_its_middle_square(make, frozen, window, reward_config, side):
    axis = {"height": 1, "width": 2}[side]
    square = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    border = torch.full((4, 8, 8, 3), 77, dtype=torch.uint8).narrow(axis, 0, 3)
    oblong = torch.cat([border, square, border], dim=axis)
    shown = window(reward_config)
    pieces = []
    for video in (square, oblong):
        reward = make(goal=Goal("reach", video, 2))
        reward.load_state_dict({**frozen.state_dict(), "identity": reward.state_dict()["identity"]})
        pieces.append(reward.parts(shown))
    for name, value in pieces[0].items():
        assert torch.equal(pieces[1][name], value)


def test_a_latent_of_zeros_is_worth_nothing(make, reward_config, window):
    class Blind(torch.nn.Module):
        size, fingerprint, note = 8, "blind", ""

        def forward(self, frames):
            return torch.zeros(len(frames), 3, 2, 2, 2)

    parts = make(video_encoder=Blind()).parts(window(reward_config))
    assert not parts["video"].any()


def test_the_encoders_note_is_passed_on(make, reward_config):
    assert make().note == "untrained encoders"
    assert make(config=dataclasses.replace(reward_config, use_fb=False), image_encoder=None).note == ""


def test_a_clip_that_the_encoder_does_not_take(make, reward_config):
    with pytest.raises(UserError, match=r"--clip-frames 3 .*2n frames"):
        make(config=dataclasses.replace(reward_config, clip_frames=3))


def test_ablations(make, reward_config, window, pairs):
    only_video = make(config=dataclasses.replace(reward_config, use_fb=False), image_encoder=None)
    assert only_video.frozen
    assert only_video.learn_steps == 0
    assert only_video.frames.feature_size == 0
    assert only_video.update(pairs(32)) == {}
    assert only_video.freeze([]) == {}
    config = dataclasses.replace(reward_config, use_video=False)
    only_fb = make(config=config, video_encoder=None)
    assert (only_fb.frames.clip_size, only_fb.frames.clip_steps) == (0, ())
    assert set(only_video.parts(window(only_video.config))) == {"video", "video_raw"}
    assert set(only_fb.parts(window(config))) == {"fb", "fb_raw"}
    with pytest.raises(ValueError, match="clip"):
        only_video.score(window(config))
    with pytest.raises(ValueError, match="features"):
        only_fb.score(window(only_video.config))


def test_one_image_encoder_serves_the_whole_process(reward_config, tiny_goal, monkeypatch):
    loaded = []
    real = presets.load_image_encoder
    monkeypatch.setattr(presets, "load_image_encoder", lambda *args: loaded.append(real(*args)) or loaded[-1])
    presets._shared.cache_clear()
    config = dataclasses.replace(reward_config, use_video=False)
    goals = [dataclasses.replace(tiny_goal, seed=seed) for seed in range(3)]
    rewards = [GenReward(goal, "tiny", config=config, device="cpu") for goal in goals]
    frames = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    features = [reward.features(frames) for reward in rewards]
    assert len(loaded) == 1
    assert torch.equal(features[0], features[2])
    assert all(reward._image_encoder is loaded[0] for reward in rewards)
    # FB learns from features: no encoder is part of it, so none is copied into its targets or its checkpoint.
    size = sum(value.numel() for value in loaded[0].parameters())
    assert not any(module is loaded[0] for module in rewards[0]._fb.modules())
    assert sum(value.numel() for value in rewards[0]._fb.parameters()) < size


def test_the_state_makes_equal_rewards(make, frozen, reward_config, window):
    file = io.BytesIO()
    torch.save(frozen.state_dict(), file)
    file.seek(0)
    other = make(seed=3)
    shown = window(reward_config)
    assert not torch.equal(other.score(shown), frozen.score(shown))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.score(shown), frozen.score(shown))


def test_a_state_made_with_something_else_is_refused(
    make, frozen, reward_config, tiny_goal, video_encoder, image_encoder
):
    state = frozen.state_dict()
    narrow = dataclasses.replace(reward_config, fb=dataclasses.replace(reward_config.fb, hidden=8))
    policy, standardised = (
        dataclasses.replace(reward_config, fb=dataclasses.replace(reward_config.fb, **changes))
        for changes in ({"next_action": "policy"}, {"standardise_features": True})
    )
    others = {
        "goal": make(goal=dataclasses.replace(tiny_goal, seed=1)),
        "video encoder video-1.*video-2": make(video_encoder=type(video_encoder)("video-2")),
        "image encoder image-1.*image-2": make(image_encoder=type(image_encoder)(5, "image-2")),
        "feature size 5.*7": make(image_encoder=type(image_encoder)(7)),
        "action size 2.*3": make(action_size=3),
        "FB hidden 16.*8": make(config=narrow),
        "FB next action none.*policy": make(config=policy),
        "FB features none.*standardised": make(config=standardised),
        "goal frame .*none": make(config=dataclasses.replace(reward_config, use_fb=False)),
    }
    for message, reward in others.items():
        with pytest.raises(UserError, match=message):
            reward.load_state_dict(state)
    with pytest.raises(UserError, match="reward none"):
        make().load_state_dict({"identity": {**state["identity"], "reward": "none"}})
    damaged = {**state, "fb": {name: value for name, value in state["fb"].items() if name != "mean"}}
    with pytest.raises(UserError, match="mean"):
        make().load_state_dict(damaged)
