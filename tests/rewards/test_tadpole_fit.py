"""The small text-to-image model fitted to demonstrations: losses, resuming, and the folder."""

import json
import signal

import pytest
import torch
from torch import Tensor

from genreward_fast.errors import Interrupted, TrainingDiverged, UserError
from genreward_fast.goals.demos import read_demos
from genreward_fast.goals.video_io import write_video
from genreward_fast.rewards.config import RewardConfig
from genreward_fast.rewards.fitting import FITTERS, FitConfig
from genreward_fast.rewards.tadpole import fit
from genreward_fast.rewards.tadpole.examples import FRAMES, read_pictures
from genreward_fast.rewards.tadpole.reward import Tadpole
from genreward_fast.rewards.tadpole.small_model import SmallModel
from genreward_fast.rewards.tadpole.weights import read_picture_model

TEXTS = ("push the red block", "lift the blue block")
COLOURS = ((220, 30, 30), (30, 30, 220))


def blocks(colour: int, count: int, generator: torch.Generator) -> Tensor:
    """(count, 64, 64, 3) uint8: a block of one of the colours anywhere before grey."""
    frames = torch.full((count, 64, 64, 3), 40, dtype=torch.uint8)
    for frame in frames:
        top, left = torch.randint(0, 40, (2,), generator=generator).tolist()
        frame[top : top + 24, left : left + 24] = torch.tensor(COLOURS[colour], dtype=torch.uint8)
    return frames


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six clips of blocks of two colours, with a caption each."""
    folder = tmp_path_factory.mktemp("demos")
    generator = torch.Generator().manual_seed(0)
    for number in range(6):
        write_video(folder / f"{number}.mp4", blocks(number % 2, 10, generator))
        (folder / f"{number}.txt").write_text(TEXTS[number % 2])
    return folder


def config_of(data, out, **changes) -> FitConfig:
    values = {"steps": 2, "batch_size": 2, "lr": 1e-3, **changes}
    return FitConfig("tadpole", data, out, **values)


def weights_of(out) -> dict[str, Tensor]:
    return torch.load(out / "checkpoint.pt", weights_only=True)["model"]


def test_both_losses_fall(data, tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "CHECKPOINT_STEPS", 4)
    result = FITTERS["tadpole"](config_of(data, tmp_path / "out", steps=12, batch_size=3, lr=3e-3))
    losses = result.record["losses"]
    for points in losses.values():
        assert [step for step, _ in points] == [4, 8, 12]
    assert losses["autoencoder"][-1][1] < 0.7 * losses["autoencoder"][0][1]
    assert losses["denoiser"][-1][1] < 0.95 * losses["denoiser"][0][1]
    assert json.loads((tmp_path / "out" / "fit.json").read_text()) == result.record
    assert result.record["clips"] == 6
    assert result.record["pictures"] == 60
    assert str(result.folder) in result.lines[1]
    model = read_picture_model(str(result.folder), TEXTS[0], torch.float32)
    latents = model.latents(torch.cat([blocks(colour, 20, torch.Generator().manual_seed(1)) for colour in (0, 1)]))
    assert 0.5 < latents.std() < 2  # what the scaling is for
    reward = Tadpole(model, TEXTS[0], config=RewardConfig(name="tadpole"))
    assert reward.note == ""


def test_denoising_listens_to_the_text_and_trains_who_reads_it():
    model = SmallModel(TEXTS, 0)
    frames = blocks(0, 2, torch.Generator().manual_seed(0))

    def loss(text: str) -> Tensor:
        return model.denoising_loss(frames, [text, text], torch.Generator().manual_seed(1))  # the same noise

    assert torch.equal(loss(TEXTS[0]), loss(TEXTS[0]))
    assert loss(TEXTS[0]) != loss(TEXTS[1])
    assert loss(TEXTS[0]) != loss("")
    loss(TEXTS[0]).backward()
    for module in (model.unet, model.text_encoder):
        assert all(parameter.grad is not None for name, parameter in module.named_parameters())
        assert sum(parameter.grad.abs().sum() for parameter in module.parameters()) > 0
    assert all(parameter.grad is None for parameter in model.vae.parameters())
    model.zero_grad()
    model.autoencoder_loss(frames, torch.Generator()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.vae.parameters())
    assert not any(parameter.grad is not None and parameter.grad.any() for parameter in model.unet.parameters())


@pytest.mark.parametrize("at", [1, 2])
def test_an_interrupted_fit_goes_on_as_if_nothing_had_been(data, tmp_path, monkeypatch, at):
    FITTERS["tadpole"](config_of(data, tmp_path / "whole"))
    update = fit._Fit._update

    def interrupted(self, stage, step):
        if self.done == at:
            signal.raise_signal(signal.SIGINT)
        return update(self, stage, step)

    with monkeypatch.context() as patch:
        patch.setattr(fit._Fit, "_update", interrupted)
        with pytest.raises(Interrupted, match=f"stopped after step {at + 1} of 4; --resume"):
            FITTERS["tadpole"](config_of(data, tmp_path / "cut"))
    assert not (tmp_path / "cut" / "model").exists()
    with pytest.raises(UserError, match="not empty"):
        FITTERS["tadpole"](config_of(data, tmp_path / "cut"))
    with pytest.raises(UserError, match="begun with seed 0, not 1"):
        FITTERS["tadpole"](config_of(data, tmp_path / "cut", resume=True, seed=1))
    result = FITTERS["tadpole"](config_of(data, tmp_path / "cut", resume=True))
    whole, cut = weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    read = [read_picture_model(str(tmp_path / run / "model"), TEXTS[0], torch.float32) for run in ("whole", "cut")]
    assert read[0].fingerprint == read[1].fingerprint
    assert result.record["steps"] == 2


def test_each_network_ends_when_its_time_is_over(data, tmp_path):
    result = FITTERS["tadpole"](config_of(data, tmp_path / "out", steps=10**6, minutes=0.5 / 60))
    for points in result.record["losses"].values():
        assert 0 < points[-1][0] < 10**4
    assert read_picture_model(str(result.folder), TEXTS[0], torch.float32).size == 64


def test_a_loss_that_is_not_finite_ends_the_fit(data, tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "CHECKPOINT_STEPS", 1)
    update = fit._Fit._update
    monkeypatch.setattr(fit._Fit, "_update", lambda self, *at: update(self, *at) * (1 if self.done < 1 else torch.nan))
    with pytest.raises(TrainingDiverged, match="autoencoder's loss is nan at step 2; lower --lr"):
        FITTERS["tadpole"](config_of(data, tmp_path / "out"))
    assert torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["done"] == 1


def test_bad_input_is_named(data, tmp_path):
    with pytest.raises(UserError, match="no such folder of demonstrations"):
        FITTERS["tadpole"](config_of(tmp_path / "nowhere", tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="no checkpoint to resume"):
        FITTERS["tadpole"](config_of(data, tmp_path / "out", resume=True))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoint.pt").write_bytes(b"checkpoint")
    with pytest.raises(UserError, match=r"checkpoint\.pt: damaged"):
        FITTERS["tadpole"](config_of(data, tmp_path / "out", resume=True))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        FITTERS["tadpole"](config_of(data, tmp_path / "file"))
    with pytest.raises(UserError, match="use one of diffusion-reward, tadpole, viper"):
        FitConfig("genreward", data, tmp_path)
    for name, value in (("steps", 0), ("batch_size", 0), ("lr", 0.0), ("seed", -1)):
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')}"):
            config_of(data, tmp_path / "out", **{name: value})


def test_pictures_and_their_captions(data, tmp_path):
    pictures = read_pictures(read_demos(data), 16)
    assert pictures.frames.shape == (60, 16, 16, 3)
    assert pictures.clip.tolist() == [number for number in range(6) for _ in range(10)]
    frames, texts = pictures.draw(400, 0.25, torch.Generator().manual_seed(0))
    for frame, text in zip(frames, texts):
        red, _, blue = frame.flatten(0, 1).float().mean(dim=0).tolist()
        assert text in ("", TEXTS[0] if red > blue else TEXTS[1])
    assert 50 < texts.count("") < 150
    write_video(tmp_path / "long.mp4", torch.zeros(100, 16, 16, 3, dtype=torch.uint8))
    (tmp_path / "long.txt").write_text("wait")
    assert len(read_pictures(read_demos(tmp_path), 16).frames) == FRAMES
