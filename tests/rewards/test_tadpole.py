"""TADPoLe: its formula, draws, credit, frames and identity, with a small model of initial weights."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from genreward_fast.errors import UserError
from genreward_fast.rewards.base import EncodesWindows, RewardModel, total
from genreward_fast.rewards.config import RewardConfig
from genreward_fast.rewards.tadpole.architectures import random_model
from genreward_fast.rewards.tadpole.config import TadpoleConfig
from genreward_fast.rewards.tadpole.draws import NumberedDraws
from genreward_fast.rewards.tadpole.formula import reward_of, symlog, terms
from genreward_fast.rewards.tadpole.model import TextDiffusion
from genreward_fast.rewards.tadpole.reward import Tadpole, VideoTadpole
from genreward_fast.types import Window

STEPS = 8


def settings(name: str = "tadpole", **changes) -> RewardConfig:
    return dataclasses.replace(RewardConfig(name=name, window=STEPS, interval=STEPS, clip_frames=3), **changes)


def frames_of(*shape: int) -> Tensor:
    return torch.randint(0, 256, (*shape, 64, 64, 3), dtype=torch.uint8)


def window_of(features: Tensor | None = None, clip: Tensor | None = None, fresh: int = STEPS) -> Window:
    count = len(features if clip is None else clip)
    return Window(clip, features, torch.zeros(count, STEPS, 2), torch.zeros(count, STEPS), fresh)


@pytest.fixture(scope="module")
def pictures() -> TextDiffusion:
    return random_model("tiny", False, 0, torch.float32, "random weights")


@pytest.fixture(scope="module")
def clips() -> TextDiffusion:
    return random_model("tiny", True, 0, torch.float32, "random weights")


def test_the_formula_of_an_example_by_hand():
    noise = torch.tensor([0.0, 1.0]).view(1, 1, 2)
    with_text, without = torch.tensor([0.5, 1.0]).view(1, 1, 2), torch.tensor([1.0, 0.0]).view(1, 1, 2)
    # ‖ε_c − ε_u‖² = (0.5² + 1²) / 2; ‖ε_u − ε‖² − ‖ε_c − ε‖² = (1 + 1) / 2 − (0.25 + 0) / 2
    values = terms(with_text, without, noise)
    torch.testing.assert_close(values, torch.tensor([0.625, 0.875]))
    expected = math.log(1 + 2000 * 0.625) + math.log(1 + 200 * 0.875)
    assert reward_of(values, TadpoleConfig()).item() == pytest.approx(expected, rel=1e-6)
    # A text that makes it worse: the same alignment, and the difference turns round.
    values = terms(without, with_text, noise)
    expected = math.log(1 + 2000 * 0.625) - math.log(1 + 200 * 0.875)
    assert reward_of(values, TadpoleConfig()).item() == pytest.approx(expected, rel=1e-6)
    assert reward_of(values, TadpoleConfig(align=0, reconstruct=1)).item() == pytest.approx(-math.log(1.875), rel=1e-6)


def test_means_are_over_a_frames_own_latent(fresh_generator):
    conditional, unconditional, noise = torch.randn(3, 2, 5, 4, 3, 3, generator=fresh_generator).unbind()
    values = terms(conditional, unconditional, noise)
    assert values.shape == (2, 5, 2)
    one = terms(conditional[1, 3], unconditional[1, 3], noise[1, 3])
    torch.testing.assert_close(values[1, 3], one)
    torch.testing.assert_close(one[0], ((conditional - unconditional)[1, 3] ** 2).sum() / 36)
    x = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(symlog(x).exp()[4:] - 1, x[4:])
    torch.testing.assert_close(symlog(-x), -symlog(x))


def test_noise_depends_on_the_number_alone():
    def draws(*counts: int, seed: int = 3, skip: int = 0):
        numbered = NumberedDraws(seed, (500, 600), torch.device("cpu"))
        numbered.drawn = skip
        pairs = [numbered.next(count, (4, 5, 5)) for count in counts]
        return torch.cat([levels for levels, _ in pairs]), torch.cat([noise for _, noise in pairs])

    levels, noise = draws(300)
    for other in (draws(1, 2, 297), tuple(torch.cat(x) for x in zip(draws(100), draws(200, skip=100)))):
        assert torch.equal(levels, other[0])
        assert torch.equal(noise, other[1])
    assert not torch.equal(noise, draws(300, seed=4)[1])
    assert levels.min() >= 500
    assert levels.max() < 600
    assert len(levels.unique()) > 70  # of 100; fixed by the seed
    assert abs(noise.mean()) < 0.03  # 30000 numbers
    assert abs(noise.std() - 1) < 0.03


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_noise_of_both_kinds_of_prediction(pictures, prediction, fresh_generator):
    """A denoiser that knows the noise and says it with the text; without, what it says is off by 0.1."""
    latents, noise = torch.randn(2, 3, 4, 16, 16, generator=fresh_generator).unbind()
    levels = torch.tensor([0, 300, 999])
    alpha = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    alpha = (1 - alpha).cumprod(0)[levels].view(3, 1, 1, 1)
    seen = {}

    def unet(noisy, level, encoder_hidden_states, return_dict):
        seen.update(noisy=noisy, level=level, texts=encoder_hidden_states)
        epsilon = torch.cat([noise + 0.1, noise]).double()
        x, a = latents.double().repeat(2, 1, 1, 1), alpha.repeat(2, 1, 1, 1)
        return (epsilon if prediction == "epsilon" else a.sqrt() * epsilon - (1 - a).sqrt() * x).float(), None

    model = random_model("tiny", False, 0, torch.float32, "")
    model.prediction, model._modules["unet"] = prediction, None
    object.__setattr__(model, "unet", unet)
    conditional, unconditional = model.predict(latents, noise, levels)
    torch.testing.assert_close(conditional, noise, rtol=1e-4, atol=1e-4)
    if prediction == "epsilon":
        torch.testing.assert_close(unconditional, noise + 0.1)
    expected = (alpha.sqrt() * latents + (1 - alpha).sqrt() * noise).float()
    torch.testing.assert_close(seen["noisy"][3:], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen["noisy"][:3], seen["noisy"][3:])
    assert seen["level"].tolist() == [0, 300, 999] * 2
    assert torch.equal(seen["texts"][:3], model.embeddings[:1].expand(3, -1, -1))
    assert torch.equal(seen["texts"][3:], model.embeddings[1:].expand(3, -1, -1))


def test_other_predictions_are_refused():
    model = random_model("tiny", False, 0, torch.float32, "")
    vae = SimpleNamespace(config=SimpleNamespace(block_out_channels=(1,)))
    with pytest.raises(UserError, match="predicts sample"):
        TextDiffusion(model.unet, vae, model.embeddings, model.alphas, prediction="sample")


def test_frames_one_by_one_or_together(pictures):
    frames = frames_of(5)
    together = Tadpole(pictures, "press", config=settings(tadpole=TadpoleConfig(batch=2)), seed=1)
    alone = Tadpole(pictures, "press", config=settings(), seed=1)
    values = together.features(frames)
    assert values.shape == (5, 2)
    assert (values[:, 0] > 1e-6).all()
    torch.testing.assert_close(
        values, torch.cat([alone.features(frame[None]) for frame in frames]), rtol=1e-3, atol=1e-6
    )
    assert not torch.allclose(values, together.features(frames), rtol=1e-2)  # fresh noise
    assert together.state_dict()["drawn"] == 10


@pytest.mark.parametrize("fresh", [STEPS, 3, 1])
def test_each_row_is_paid_its_own_frame(pictures, fresh, fresh_generator):
    values = torch.rand(2, STEPS, 2, generator=fresh_generator) - 0.5
    spread = Tadpole(pictures, "press", config=settings(credit="spread", scale=0.5))
    closing = Tadpole(pictures, "press", config=settings(credit="closing", scale=0.5))
    parts = spread.parts(window_of(values, fresh=fresh))
    expected = 0.5 * reward_of(values, TadpoleConfig())
    torch.testing.assert_close(parts["tadpole"][:, -fresh:], expected[:, -fresh:])
    assert not parts["tadpole"][:, : STEPS - fresh].any()
    torch.testing.assert_close(parts["tadpole_raw"], 2 * expected)
    torch.testing.assert_close(parts["alignment_raw"], values[..., 0])
    torch.testing.assert_close(total(parts), spread.score(window_of(values, fresh=fresh)))
    paid = closing.score(window_of(values, fresh=fresh))
    torch.testing.assert_close(paid[:, -1], expected[:, -fresh:].sum(dim=1))
    assert not paid[:, :-1].any()


def test_they_keep_the_contract(pictures, clips):
    frame, clip = Tadpole(pictures, "a", config=settings()), VideoTadpole(clips, "a", config=settings("video-tadpole"))
    for reward in (frame, clip):
        assert isinstance(reward, RewardModel)
        assert isinstance(reward, EncodesWindows)
        assert reward.frozen
        assert reward.learn_steps == 0
        assert reward.note == "random weights"
    assert frame.frames.sizes_at(1) == (64,)
    assert frame.frames.feature_dim == 2
    assert [row for row in range(STEPS) if clip.frames.sizes_at(row)] == [0, 4, 7]


def test_a_row_is_paid_the_nearest_frame_of_the_clip(clips):
    reward = VideoTadpole(clips, "press", config=settings("video-tadpole"), seed=2)
    shown = window_of(clip=frames_of(2, 3))
    parts = reward.parts(shown)
    raw = parts["video_tadpole_raw"]
    assert raw.shape == (2, STEPS)
    assert len(raw[0].unique()) == 3
    for row, step in enumerate((0, 0, 0, 4, 4, 4, 7, 7)):  # clip steps 0, 4, 7; row 2 is as near to 0 as to 4
        assert torch.equal(raw[:, row], raw[:, step])
    torch.testing.assert_close(parts["video_tadpole"], raw)
    again = VideoTadpole(clips, "press", config=settings("video-tadpole"), seed=2)
    one_by_one = torch.cat([again.parts(window_of(clip=clip[None]))["alignment_raw"] for clip in shown.clip])
    torch.testing.assert_close(parts["alignment_raw"], one_by_one, rtol=1e-3, atol=1e-6)


def test_the_frames_of_a_clip_are_denoised_together(clips):
    """Another last frame changes what is said of the first, which a model of pictures cannot do."""
    clip = frames_of(1, 3)
    other = clip.clone()
    other[0, 2] = 255 - other[0, 2]
    first, second = (
        VideoTadpole(clips, "press", config=settings("video-tadpole"), seed=2).parts(window_of(clip=shown))
        for shown in (clip, other)
    )
    assert first["alignment_raw"][0, 0] != second["alignment_raw"][0, 0]


def test_a_checkpoint_of_something_else_is_refused(pictures, clips, tmp_path):
    reward = Tadpole(pictures, "press", config=settings())
    reward.features(frames_of(4))
    torch.save(reward.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    same = Tadpole(pictures, "press", config=settings())
    same.load_state_dict(state)
    frames = frames_of(2)
    assert torch.equal(same.features(frames), reward.features(frames))  # the noise goes on where it was
    other_model = random_model("tiny", False, 1, torch.float32, "")
    for other, words in (
        (Tadpole(pictures, "open", config=settings()), "goal text press, this run's has open"),
        (Tadpole(other_model, "press", config=settings()), "diffusion model"),
        (Tadpole(pictures, "press", config=settings(tadpole=TadpoleConfig(noise_from=400))), "noise levels"),
        (VideoTadpole(clips, "press", config=settings("video-tadpole")), "reward tadpole"),
    ):
        with pytest.raises(UserError, match=words):
            other.load_state_dict(state)


def test_what_does_not_fit_is_named(pictures, clips):
    with pytest.raises(UserError, match="schedule has 1000"):
        Tadpole(pictures, "a", config=settings(tadpole=TadpoleConfig(noise_upto=1001)))
    with pytest.raises(UserError, match=r"--clip-frames 33.*at most 32"):
        VideoTadpole(clips, "a", config=settings("video-tadpole", window=40, interval=40, clip_frames=33))
    with pytest.raises(ValueError, match="frames must be"):
        Tadpole(pictures, "a", config=settings()).features(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"align": -1.0}, "align"),
        ({"reconstruct": float("nan")}, "reconstruct"),
        ({"noise_from": 600}, r"\[600, 600\)"),
        ({"noise_from": -1}, r"\[-1, 600\)"),
        ({"batch": 0}, "batch"),
    ],
)
def test_bad_settings(changes, words):
    with pytest.raises(UserError, match=words):
        TadpoleConfig(**changes)
