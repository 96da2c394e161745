"""The reward's latency is measured for both ways of computing it, which agree where they should."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from genreward_fast.bench import reward
from genreward_fast.bench.reward_baselines import BASELINES, baseline_calls
from genreward_fast.cli import main
from genreward_fast.encoders.presets import EncoderConfig, Encoders
from genreward_fast.goals.goal import Goal
from genreward_fast.rewards.config import RewardConfig
from genreward_fast.rewards.registry import make_reward
from genreward_fast.rewards.roboclip_config import RoboClipConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_both_ways_are_timed_and_agree(tmp_path, capsys):
    target = tmp_path / "reward.json"
    encoders = EncoderConfig(preset="tiny", clip_frame_size=32, image_size=32)
    request = reward.Request(encoders, "cpu", (1, 2), seconds=0.01, rendering=False, baselines=("tadpole",))
    reward.run(request, target)
    written, printed = json.loads(target.read_text()), capsys.readouterr().out
    assert written["note"] == "untrained encoders"
    assert "untrained encoders" in printed
    rows = {(r["way"], r["envs"], r["unit"], r["part"]): r for r in written["results"]}
    ours = [("step", "all")] + [("window", part) for part in ("all", "clip encode", "cosine", "FB score")]
    released = [("step", "all")] + [("window", part) for part in ("all", "video level", "frame level")]
    expected = {("ours", n, *part) for n in (1, 2) for part in ours}
    expected |= {("released", n, *part) for n in (1, 2) for part in released}
    for way, part in (("diffusion-reward", "15 rows"), ("viper", "8 rows"), ("tadpole (random weights)", "all")):
        expected |= {(way, n, *unit) for n in (1, 2) for unit in (("step", "all"), ("window", part))}
    assert set(rows) == expected
    for row in rows.values():
        assert 0 < row["p50 ms"] <= row["p95 ms"] <= row["p99 ms"]
        assert row["p50 ms per env"] == row["p50 ms"] / row["envs"]
        assert row["calls"] >= 3
    agreement = {row["value"]: row for row in written["agreement"]}
    feature = agreement["feature"]
    assert feature["difference"] < 0.1 * feature["ours"]
    assert agreement["r_video of means"]["difference"] < 1e-4
    assert agreement["raw r_FB"]["difference"] < 0.1 * abs(agreement["raw r_FB"]["ours"]) + 0.5
    assert agreement["r_video, between draws"]["released"] > 0
    assert agreement["r_video as released"]["difference"] > 1e-3


@pytest.mark.parametrize("name", BASELINES)
def test_rewards_of_other_papers_are_called_as_training_calls_them(name):
    subjects = SimpleNamespace(
        encoder_config=EncoderConfig(preset="tiny"),
        device=torch.device("cpu"),
        goal=Goal("noise", torch.zeros(2, 8, 8, 3, dtype=torch.uint8), 1),
        noise=lambda *shape: torch.randint(0, 256, (*shape, shape[-1], 3), dtype=torch.uint8),
    )
    config = RewardConfig(name=name, window=20, interval=20, clip_frames=4, roboclip=RoboClipConfig(size=32))
    made = make_reward(config, subjects.goal, Encoders(EncoderConfig(preset="tiny", weights="random")), 4, "cpu")
    results = {unit: call() for (unit, _), call in baseline_calls(made, subjects, 2).items()}
    assert results["window"].shape == (2, 20)
    assert (results["step"].shape == (2, 2)) if name == "tadpole" else ("step" not in results)


def test_the_command_hands_its_options_over(monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(reward, "run", lambda *arguments: asked.append(arguments))
    command = ["bench", "--what", "reward", "--device", "cpu"]
    assert main(command) == 0
    assert asked.pop() == (reward.Request(EncoderConfig(preset="tiny"), "cpu"), None)
    target = tmp_path / "numbers.json"
    options = ["--envs", "2", "--envs", "5", "--seconds", "0.5", "--skip-environments", "--json", str(target)]
    assert main([*command, "--preset", "paper", "--weights", "random", *options]) == 0
    encoders = EncoderConfig(preset="paper", weights="random")
    assert asked.pop() == (reward.Request(encoders, "cpu", (2, 5), 0.5, False), target)
    assert main([*command, "--reward", "roboclip", "--reward", "tadpole"]) == 0
    request, _ = asked.pop()
    assert request.baselines == ("roboclip", "tadpole")
    for bad in (["--envs", "0"], ["--preset", "huge"], ["--preset", "tiny", "--weights", "random", "--vae", "x"]):
        assert main([*command, *bad]) == 2
        assert bad[-2] in capsys.readouterr().err
    assert not asked


@pytest.mark.slow
def test_the_suite_of_pytest_benchmark(tmp_path):
    pytest.importorskip("pytest_benchmark")
    target = tmp_path / "numbers.json"
    command = [sys.executable, "-m", "pytest", "benchmarks/rewards", "-q", "--device", "cpu", "--envs", "1"]
    command += ["--benchmark-min-rounds", "2", "--benchmark-max-time", "0.1", "--benchmark-json", str(target)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    names = [entry["name"] for entry in json.loads(target.read_text())["benchmarks"]]
    assert len(names) == 4
    for name in ("ours-step", "ours-window", "released-step", "released-window"):
        assert any(name in found for found in names), names
