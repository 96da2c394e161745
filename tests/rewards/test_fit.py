"""Fitting both rewards to six clips of a moving square, in small."""

import dataclasses
import json
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from genreward_fast.cli import main
from genreward_fast.errors import Interrupted, TrainingDiverged, UserError
from genreward_fast.rewards.config import RewardConfig
from genreward_fast.rewards.diffusion_reward.fit import denoising_loss
from genreward_fast.rewards.fitting import FITTERS, FitConfig, fit
from genreward_fast.rewards.frame_model import stage
from genreward_fast.rewards.frame_model.config import ViperConfig
from genreward_fast.rewards.frame_model.expert_frames import read_expert_frames
from genreward_fast.rewards.registry import make_reward

NAMES = ("diffusion-reward", "viper")
STEPS = 30


def config_of(name, data, out, **changes) -> FitConfig:
    settings = {"steps": STEPS, "batch_size": 4, "lr": 2e-3, "preset": "tiny"} | changes
    return FitConfig(name, data, out, **settings)


@pytest.fixture(scope="session", params=NAMES)
def fitted(request, demonstrations, tmp_path_factory):
    """The name of a reward, and what its fitting returned."""
    out = tmp_path_factory.mktemp("fitted") / request.param
    return request.param, fit(config_of(request.param, demonstrations, out))


def test_losses_fall_and_all_is_written_down(fitted, demonstrations):
    name, result = fitted
    record = json.loads((result.folder / "fit.json").read_text())
    assert record == result.record
    for curve in record["losses"].values():
        assert [step for step, _ in curve] == list(range(1, STEPS + 1))
        values = [loss for _, loss in curve]
        assert sum(values[-10:]) < 0.8 * sum(values[:10])
    assert (record["reward"], record["frames"], len(record["clips"])) == (name, 120, 6)
    assert record["demonstrations"] == str(demonstrations)
    assert record["deviation"] > 0
    assert 16 < record["codes used"] <= record["codes"] == 128
    assert {path.name for path in result.folder.iterdir()} == {"fit.json", "codec", "model"}
    assert str(result.folder) in result.lines[-1]


def loaded(name, result):
    return make_reward(RewardConfig(name=name, weights=str(result.folder)), None, None, 4, "cpu")


@torch.no_grad()
def denoising_nats(network, codes):
    """The mean loss of the third and all later frames, over timesteps."""
    schedule, pasts = network.noise_schedule(), torch.stack([codes[:-2], codes[1:-1]], 1)
    losses = [
        denoising_loss(lambda seen, t: network(seen, pasts, t), schedule, codes[2:], timestep)
        for timestep in range(0, 100, 5)
    ]
    return torch.stack(losses).mean()


def test_a_held_out_expert_is_likelier_than_random_frames(fitted, expert_clip):
    """Random ones are random codes: what a codec makes of pixels it has never seen may be any of the usual ones."""
    torch.manual_seed(0)
    name, result = fitted
    reward = loaded(name, result)
    codes = [reward.features(expert_clip(77)[:16]).long(), torch.randint(128, (16, 16))]
    if name == "viper":
        nats = [-reward._score(each[None], 16).mean() for each in codes]
    else:
        nats = [denoising_nats(reward._score.network, each) for each in codes]
    assert nats[0] < 0.9 * nats[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_with_more_updates_held_out_experts_are_rated_above_noise(name, demonstrations, expert_clip, tmp_path):
    result = fit(config_of(name, demonstrations, tmp_path / "weights", steps=300, batch_size=8))
    reward = loaded(name, result)
    noise = torch.randint(0, 256, (48, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    experts = torch.cat([expert_clip(seed)[:16] for seed in (77, 78, 79)])
    rated = [reward._score(reward.features(frames).long().view(3, 16, -1), 16).mean() for frames in (experts, noise)]
    assert rated[0] > rated[1] + 3


def test_the_saved_reward_is_standardised_by_what_experts_scored(fitted, demonstrations):
    """Mean 0 and deviation 1 over the demonstrations, by an evaluation of our own."""
    name, result = fitted
    reward = loaded(name, result)
    frames = read_expert_frames(demonstrations).frames.view(6, 20, 64, 64, 3)
    codes = torch.stack([reward.features(clip) for clip in frames])
    if name == "diffusion-reward":
        scores = reward._score(codes.long(), 20)
    else:
        stride = ViperConfig().stride
        scores = torch.cat([reward._score(codes[:, first : first + 16].long(), stride) for first in range(5)])
    assert scores.mean().item() == pytest.approx(result.record["mean"], rel=1e-4)
    assert scores.std(correction=0).item() == pytest.approx(result.record["deviation"], rel=1e-3)


@pytest.mark.parametrize(("name", "stopped"), [("viper", ("codec", 2)), ("diffusion-reward", ("model", 2))])
def test_a_run_that_was_interrupted_gives_the_same_bits(name, stopped, demonstrations, tmp_path, monkeypatch):
    straight = fit(config_of(name, demonstrations, tmp_path / "straight", steps=3))
    monkeypatch.setattr(stage, "StopSignal", lambda: StopAt(*stopped))
    monkeypatch.setattr(stage, "generator_of", counting(stage.generator_of))
    config = config_of(name, demonstrations, tmp_path / "run", steps=3)
    with pytest.raises(Interrupted, match=f"update {stopped[1]} of 3 of the {stopped[0]}"):
        fit(config)
    assert not (config.out / "fit.json").exists()
    monkeypatch.undo()
    with pytest.raises(UserError, match="--resume"):
        fit(config)
    resumed = fit(dataclasses.replace(config, resume=True))
    assert resumed.record == straight.record
    for part in ("codec", "model"):
        weights = [next((tmp_path / run / part).glob("*.safetensors")) for run in ("straight", "run")]
        ours, theirs = map(load_file, weights)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert not (config.out / "checkpoint.pt").exists()


PROGRESS = {"stage": "", "step": 0}


def counting(original):
    def generator_of(seed, name, step):
        PROGRESS.update(stage=name, step=step)
        return original(seed, name, step)

    return generator_of


class StopAt:
    """A signal that comes during one update."""

    def __init__(self, name, step):
        self.at = {"stage": name, "step": step - 1}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    @property
    def number(self):
        return signal.SIGTERM if self.at == PROGRESS else 0


def test_each_network_ends_when_its_time_is_over(demonstrations, tmp_path):
    config = config_of("viper", demonstrations, tmp_path / "out", steps=10**6, minutes=0.3 / 60)
    result = fit(config)
    for curve in result.record["losses"].values():
        assert 0 < curve[-1][0] < 10**4
    assert make_reward(RewardConfig(name="viper", weights=str(result.folder)), None, None, 4, "cpu").frozen
    with pytest.raises(UserError, match="--minutes must be a positive number"):
        dataclasses.replace(config, minutes=0.0)


def test_a_loss_that_is_not_finite_ends_the_run(demonstrations, tmp_path):
    with pytest.raises(TrainingDiverged, match="not finite, at update"):
        fit(config_of("viper", demonstrations, tmp_path / "run", lr=1e30, steps=20))
    assert not (tmp_path / "run" / "fit.json").exists()


def test_other_settings_are_not_resumed(demonstrations, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "StopSignal", lambda: StopAt("codec", 1))
    monkeypatch.setattr(stage, "generator_of", counting(stage.generator_of))
    config = config_of("viper", demonstrations, tmp_path / "run", steps=3)
    with pytest.raises(Interrupted):
        fit(config)
    for changes, words in (({"lr": 1e-5}, "lr 0.002, not 1e-05"), ({"seed": 1}, "seed 0, not 1")):
        with pytest.raises(UserError, match=words):
            fit(dataclasses.replace(config, resume=True, **changes))
    (config.out / "checkpoint.pt").write_bytes((config.out / "checkpoint.pt").read_bytes()[:200])
    with pytest.raises(UserError, match="damaged"):
        fit(dataclasses.replace(config, resume=True))


def test_bad_input_is_one_line(demonstrations, tmp_path, capsys, fitted):
    cases = [
        (["fit", "cosine", "--data", "x", "--out", "y"], "No such command 'cosine'"),
        (["fit", "viper", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "o")], "no such folder of demon"),
        (["fit", "viper", "--data", "x", "--out", "y", "--steps", "0"], "--steps must be at least 1"),
        (["fit", "viper", "--data", "x", "--out", "y", "--lr", "nan"], "--lr must be a positive number"),
        (["fit", "viper", "--data", "x", "--out", "y", "--preset", "big"], "--preset big: unknown"),
        (["fit", "viper", "--data", "x", "--out", str(fitted[1].folder)], "holds finished weights already"),
        (["fit", "viper", "--data", "x", "--out", str(demonstrations)], "not an empty folder"),
        (["fit", "viper", "--data", str(demonstrations), "--out", str(tmp_path / "o"), "--resume"], "no checkpoint"),
    ]
    for arguments, words in cases:
        assert main([*arguments, "--device", "cpu"]) == 2
        error = capsys.readouterr().err
        assert words in error.splitlines()[-1]
        assert "Traceback" not in error
    assert not (tmp_path / "o").exists()


def test_weights_that_are_not_there_are_named(fitted, tmp_path):
    name, result = fitted
    other = next(other for other in NAMES if other != name)

    def make(weights, reward=name):
        return make_reward(RewardConfig(name=reward, weights=str(weights)), None, None, 4, "cpu")

    with pytest.raises(UserError, match=f"genreward fit {name} --data DEMOS --out DIR"):
        make("")
    with pytest.raises(UserError, match="no finished weights"):
        make(tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"fitted for {name}, not for {other}"):
        make(result.folder, other)
    broken = tmp_path / "broken"
    shutil.copytree(result.folder, broken)
    (broken / "codec" / "config.json").unlink()
    with pytest.raises(UserError, match=r"codec/config\.json: no such file"):
        make(broken)
    shutil.copytree(result.folder / "codec", broken / "codec", dirs_exist_ok=True)
    weights = next((broken / "model").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=f"{broken}/model: not usable"):
        make(broken)


def test_a_window_longer_than_the_models_context_is_refused(fitted):
    name, result = fitted
    if name == "viper":
        config = RewardConfig(name=name, weights=str(result.folder), viper=ViperConfig(window=17))
        with pytest.raises(UserError, match="context of 16 frames, but windows have 17"):
            make_reward(config, None, None, 4, "cpu")


def test_the_command(demonstrations, tmp_path, capsys):
    out = tmp_path / "weights"
    flags = ["--data", str(demonstrations), "--out", str(out), "--preset", "tiny", "--steps", "2"]
    assert main(["fit", "viper", *flags, "--batch-size", "2", "--device", "cpu"]) == 0
    assert f"--reward viper --reward-weights {out}" in capsys.readouterr().out
    assert set(FITTERS) >= set(NAMES)
