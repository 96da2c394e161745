"""What both rewards with a model of expert frames do with its scores, and the bonus for new frames."""

import copy
import dataclasses

import pytest
import torch

from genreward_fast.errors import UserError
from genreward_fast.rewards.base import WHOLE_RUN, RewardModel, total
from genreward_fast.rewards.config import RewardConfig
from genreward_fast.rewards.frame_model.bonus import NoveltyBonus
from genreward_fast.rewards.frame_model.codec import FrameCodec, build_codec
from genreward_fast.rewards.frame_model.config import DiffusionRewardConfig, ViperConfig
from genreward_fast.rewards.frame_model.reward import FrameModelReward
from genreward_fast.types import Batch, Window


@pytest.fixture(scope="module")
def codec() -> FrameCodec:
    torch.manual_seed(0)
    return build_codec("tiny")


@pytest.fixture
def make(codec):
    def of(**changes) -> FrameModelReward:
        settings = {
            "window": 6, "interval": 4, "mean": 50.0, "deviation": 10.0, "weight": 0.25, "exploration": 0.5,
            "credit": "spread", "bonus_lr": 1e-3, "identity": {"model": "m-1"}, "device": "cpu",
        } | changes  # fmt: skip
        return FrameModelReward("some", codec, lambda codes, fresh: codes[:, -fresh:].float().mean(-1), **settings)

    return of


def window_of(codes: torch.Tensor, fresh: int) -> Window:
    shape = codes.shape[:2]
    return Window(None, codes.half(), torch.zeros(*shape, 4), torch.zeros(shape), fresh)


def pairs_of_codes(codes: torch.Tensor) -> Batch:
    """(B, 2, L) codes as pairs of rows."""
    never = torch.zeros(codes.shape[:2], dtype=torch.bool)
    action, index = torch.zeros(len(codes), 2, 4), torch.zeros(len(codes), 2, dtype=torch.long)
    return Batch(action, torch.zeros(len(codes), 2), never, never, never, index, feature=codes.half())


@pytest.fixture
def codes() -> torch.Tensor:
    return torch.randint(128, (3, 6, 16), generator=torch.Generator().manual_seed(0))


def test_each_row_is_paid_its_own(make, codes):
    reward = make(exploration=0.0)
    parts = reward.parts(window_of(codes, 4))
    x = codes.float().mean(-1)
    expected = 0.25 * (x - 50) / 10
    torch.testing.assert_close(parts["some"][:, 2:], expected[:, 2:])
    assert (parts["some"][:, :2] == 0).all()
    torch.testing.assert_close(parts["some_raw"][:, 2:], x[:, 2:])
    torch.testing.assert_close(parts["some_raw"].mean(1), x[:, 2:].mean(1))
    torch.testing.assert_close(reward.score(window_of(codes, 6)), expected)
    assert set(parts) == {"some", "some_raw"}
    assert reward.frozen
    assert reward.learn_steps == 0


def test_closing_pays_the_sum_on_the_last_row(make, codes):
    spread, closing = (make(credit=credit).parts(window_of(codes, 4)) for credit in ("spread", "closing"))
    for name in ("some", "novelty"):
        assert (closing[name][:, :-1] == 0).all()
        torch.testing.assert_close(closing[name][:, -1], spread[name].sum(1))
        assert (spread[name][:, 2:] != 0).all()
    torch.testing.assert_close(total(spread), spread["some"] + spread["novelty"])


def test_a_batch_is_its_windows_one_by_one(make, codes):
    reward = make()
    reward.update(pairs_of_codes(codes[:, :2]))
    together = reward.score(window_of(codes, 4))
    alone = torch.cat([reward.score(window_of(codes[i : i + 1], 4)) for i in range(3)])
    torch.testing.assert_close(together, alone)


def test_features_are_the_codes_and_survive_float16(make, codec):
    frames = torch.randint(0, 256, (5, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    reward = make()
    feature = reward.features(frames)
    assert torch.equal(feature.half().long(), codec.encode(frames))
    assert feature.shape == (5, reward.frames.feature_dim) == (5, 16)
    assert reward.frames.feature_size == 64
    assert reward.frames.clip_size == 0
    assert isinstance(reward, RewardModel)
    every_code = torch.arange(2048)
    assert torch.equal(every_code.half().long(), every_code)


def test_the_codecs_own_quantiser_chooses_the_same_codes(codec):
    frames = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    pixels = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        _, _, (_, _, theirs) = codec.model.quantize(codec.model.encode(pixels).latents)
        decoded = codec.model(pixels).sample
    codes = codec.encode(frames)
    assert torch.equal(codes.flatten(), theirs)
    assert (codec.decode(codes).permute(0, 3, 1, 2) - (decoded.clamp(-1, 1) + 1) * 127.5).abs().max() <= 0.51


def test_codes_that_nothing_is_encoded_to_are_restarted():
    torch.manual_seed(1)
    codec = build_codec("tiny")
    frames = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
    codec.loss(frames)
    met, before = codec.used > 0, codec.codebook.clone()
    assert 0 < met.sum() < 128
    codec.restart_unused(frames)
    assert torch.equal(codec.codebook[met], before[met])
    assert (codec.codebook[~met] != before[~met]).any(1).all()
    assert (codec.used == 0).all()
    assert len(codec.encode(frames).unique()) > met.sum()


@pytest.fixture
def bonus(codec) -> NoveltyBonus:
    return NoveltyBonus(codec.codebook * 100, codec.grid, lr=1e-3, device="cpu", seed=3)


def test_the_bonus_falls_for_frames_that_were_seen(bonus):
    generator = torch.Generator().manual_seed(4)
    seen, fresh = (torch.randint(128, (16, 16), generator=generator) for _ in range(2))
    for _ in range(60):
        metrics = bonus.update(seen)
    assert bonus.score(seen).mean() < 0.5 * bonus.score(fresh).mean()
    torch.testing.assert_close(metrics["rnd/deviation"], bonus.error_norm.deviation[0])


def test_the_bonus_is_the_error_in_deviations(bonus):
    codes = torch.randint(128, (6, 16), generator=torch.Generator().manual_seed(5))
    bonus.update(codes)
    inputs = bonus.codebook[codes].flatten(1)
    inputs = ((inputs - bonus.input_norm.mean) / bonus.input_norm.deviation).clamp(-5, 5)
    inputs = inputs.view(6, 4, 4, -1).permute(0, 3, 1, 2)
    with torch.no_grad():
        error = ((bonus.predictor(inputs) - bonus.target(inputs)) ** 2).sum(1) / 512
    torch.testing.assert_close(bonus.score(codes), error / bonus.error_norm.deviation)
    assert all(not parameter.requires_grad for parameter in bonus.target.parameters())


def test_the_bonus_learns_all_the_run_and_goes_on_from_its_state(make, codes):
    reward, other = make(), make(seed=9)
    assert reward.learn_steps == WHOLE_RUN
    assert not reward.frozen
    batch = pairs_of_codes(codes[:, :2])
    for _ in range(3):
        assert set(reward.update(batch)) == {"rnd/loss", "rnd/deviation"}
    other.load_state_dict(copy.deepcopy(reward.state_dict()))  # as out of a file
    assert torch.equal(other.score(window_of(codes, 4)), reward.score(window_of(codes, 4)))
    reward.update(batch)
    other.update(batch)
    assert torch.equal(other.score(window_of(codes, 4)), reward.score(window_of(codes, 4)))
    other.freeze([])
    assert other.update(batch) == {}
    assert make(exploration=0.0).update(batch) == {}


def test_a_state_of_something_else_is_refused(make):
    state = make().state_dict()
    make().load_state_dict(state)
    with pytest.raises(UserError, match="has model m-1, this run's has m-2"):
        make(identity={"model": "m-2"}).load_state_dict(state)
    with pytest.raises(UserError, match="genreward"):
        make().load_state_dict({"identity": {"reward": "genreward"}})
    with pytest.raises(UserError, match="does not fit this version"):
        make().load_state_dict({key: value for key, value in state.items() if key != "bonus"})


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (DiffusionRewardConfig, {"exploration": 1.5}),
        (DiffusionRewardConfig, {"skip": -1}),
        (DiffusionRewardConfig, {"noise_scale": float("inf")}),
        (DiffusionRewardConfig, {"window": 1}),
        (ViperConfig, {"exploration": -1.0}),
        (ViperConfig, {"exploration": float("nan")}),
        (ViperConfig, {"stride": 17}),
        (ViperConfig, {"bonus_lr": 0.0}),
    ],
)
def test_bad_settings(config, changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        config(**changes)


@pytest.mark.parametrize("name", ["diffusion-reward", "viper"])
def test_every_row_of_an_episode_of_256_is_paid_once(name, make):
    config = RewardConfig(name=name)
    settings = {"diffusion-reward": config.diffusion, "viper": config.viper}[name]
    interval = settings.interval if name == "diffusion-reward" else settings.stride
    spec = make(window=settings.window, interval=interval).frames
    ends = [row for row in range(1, 257) if spec.closes_at(row)]
    assert ends[0] == config.rows
    assert ends[-1] == 256
    assert dataclasses.replace(config, name="none").rows == 0
