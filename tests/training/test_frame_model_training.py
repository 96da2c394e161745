"""Training with the rewards that are fitted before, in small; their weights are untrained here."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from genreward_fast.agent.config import NetworkSize
from genreward_fast.cli import main
from genreward_fast.config import Overrides, apply, resolve
from genreward_fast.files import write_json
from genreward_fast.rewards.diffusion_reward import network as diffusion_network
from genreward_fast.rewards.frame_model.codec import build_codec
from genreward_fast.rewards.frame_model.folder import FORMAT
from genreward_fast.rewards.viper import network as viper_network
from genreward_fast.training.logger import read_metrics
from genreward_fast.training.settings import RunConfig
from genreward_fast.training.start import start_run

SMALL = NetworkSize(deter=64, hidden=16, classes=4, depth=2, units=16, stoch=4)


@pytest.fixture(scope="module", params=["diffusion-reward", "viper"])
def weights(request, tmp_path_factory):
    """The name of a reward and a folder as `genreward fit` writes it."""
    folder = tmp_path_factory.mktemp("weights") / request.param
    torch.manual_seed(0)
    codec = build_codec("tiny")
    codec.model.save_pretrained(folder / "codec")
    networks = {"diffusion-reward": diffusion_network, "viper": viper_network}
    networks[request.param].build_network(codec, "tiny").save_pretrained(folder / "model")
    write_json(folder / "fit.json", FORMAT | {"reward": request.param, "mean": -80.0, "deviation": 1.0})
    return request.param, folder


def small_config(name, folder, **flags) -> RunConfig:
    values = {
        "task": "reach", "device": "cpu", "steps": 60, "envs": 1, "prefill": 20, "train_ratio": 4,
        "env_reward": "sparse", "episode_length": 32, "release_delay": 8, "eval_every": 0, "eval_episodes": 1,
        "log_every": 4, "reward": name, "reward_weights": str(folder), "exploration": 0.5, "checkpoint_minutes": 60.0,
    } | flags  # fmt: skip
    config = apply(resolve("tiny", Overrides()), Overrides(**values))
    agent = dataclasses.replace(config.agent, network=SMALL, batch_size=2, batch_length=4)
    return dataclasses.replace(config, agent=agent)


def other_codec(folder: Path, other: Path) -> None:
    """Fills `other` with the same weights, except for the codec."""
    torch.manual_seed(1)
    build_codec("tiny").model.save_pretrained(other / "codec")
    for part in ("model", "fit.json"):
        (other / part).symlink_to(folder / part)


def test_a_run_of_60_steps_and_what_it_is_resumed_with(weights, tmp_path, capsys):
    name, folder = weights
    out = tmp_path / "run"
    summary = start_run(small_config(name, folder), out, goal=None, resume=False)
    assert summary.env_steps == 60
    assert {name, "novelty", f"{name}_raw", "novelty_raw"} <= set(summary.rewards)
    assert not (out / "goal").exists()
    assert summary.notes == []
    error = capsys.readouterr().err
    assert "--goal" not in error
    assert "pays nothing" not in error
    records = read_metrics(out)
    assert any(record.get("rnd/loss", 0) > 0 for record in records)
    assert any(record.get(f"reward/{name}", 0) != 0 for record in records)

    config = json.loads((out / "config.json").read_text())
    assert config["reward"]["weights"] == str(folder)
    resumed = ["train", "--resume", "--out", str(out), "--steps", "64", "--device", "cpu"]
    assert main([*resumed, "--exploration", "0.25"]) == 2
    assert "--exploration 0.25: differs" in capsys.readouterr().err
    other_codec(folder, tmp_path / "other")
    (out / "config.json").write_text(json.dumps(config).replace(str(folder), str(tmp_path / "other")))
    assert main(resumed) == 2
    assert "the checkpoint's reward has codec" in capsys.readouterr().err
    if name == "viper":  # what follows is the same for both, and each run starts processes
        return
    (out / "config.json").write_text(json.dumps(config))
    assert main(resumed) == 0
    assert json.loads((out / "summary.json").read_text())["env_steps"] == 64


def test_bad_input_is_one_line(tmp_path, capsys):
    cases = [
        (["--reward", "viper"], "--reward viper needs weights"),
        (["--reward", "viper", "--reward-weights", str(tmp_path)], "holds no finished weights"),
        (["--reward", "none", "--exploration", "1"], "--exploration: none has no bonus"),
        (["--reward", "diffusion-reward", "--exploration", "2"], "must lie in [0, 1], not 2.0"),
        (["--reward", "viper", "--episode-length", "8"], "the window of 16 is longer than an episode of 8 steps"),
    ]
    for flags, words in cases:
        assert main(["train", *flags, "--device", "cpu", "--out", str(tmp_path / "run")]) == 2
        error = capsys.readouterr().err
        assert words in error.splitlines()[-1]
        assert "Traceback" not in error
    assert not (tmp_path / "run").exists()
