"""A run whose encoders compute with engines: the rewards are those of PyTorch, and the run says what it ran on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genreward_fast.cli import main
from genreward_fast.training.logger import read_metrics

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow

FLAGS = {
    "task": "reach", "device": "cpu", "steps": 240, "envs": 2, "prefill": 160, "train-ratio": 4, "batch-size": 4,
    "batch-length": 8, "episode-length": 32, "window": 16, "interval": 16, "clip-frames": 4, "fb-steps": 230,
    "release-delay": 16, "eval-every": 0, "eval-episodes": 1, "log-every": 2,
}  # fmt: skip


def train(out: Path, engine: str, *more: str) -> int:
    flags = [word for name, value in FLAGS.items() for word in (f"--{name}", str(value))]
    return main(["train", *flags, "--engine", engine, "--out", str(out), *more])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A run on torch, the same one on ONNX Runtime, and the cache that it filled."""
    folder = tmp_path_factory.mktemp("engines")
    plain, fast, cache = folder / "plain", folder / "fast", folder / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENREWARD_CACHE", str(cache))
        assert train(plain, "torch") == 0
        assert not cache.exists()
        assert train(fast, "onnxruntime", "--goal", str(plain / "goal")) == 0
    return plain, fast, cache


def rewards(run: Path, name: str) -> dict[int, float]:
    """A level's raw value, by step."""
    return {record["step"]: record[name] for record in read_metrics(run) if name in record}


def test_rewards_are_those_of_torch(runs: tuple[Path, Path, Path]) -> None:
    plain, fast = (rewards(run, "reward/video_raw") for run in runs[:2])
    assert len(set(plain.values())) > 2
    assert fast == pytest.approx(plain, rel=1e-4)
    plain, fast = (rewards(run, "reward/fb_raw") for run in runs[:2])
    first = min(plain)  # later on, FB has learned from features that differ in roundings
    assert fast.keys() == plain.keys()
    assert fast[first] == pytest.approx(plain[first], rel=1e-3)


def test_the_run_says_what_it_ran_on(runs: tuple[Path, Path, Path]) -> None:
    plain, fast, cache = runs
    assert json.loads((fast / "config.json").read_text())["train"]["engine"] == "onnxruntime"
    notes = json.loads((fast / "summary.json").read_text())["notes"]
    assert [note.split(":")[0] for note in notes[1:]] == ["vae runs as an engine", "dino runs as an engine"]
    assert not any("engine" in note for note in json.loads((plain / "summary.json").read_text())["notes"])
    assert sorted(path.name.split("-")[0] for path in cache.rglob("*.engine")) == ["dino", "vae"]


def test_a_run_goes_on_with_another_engine(
    runs: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, fast, cache = runs
    monkeypatch.setenv("GENREWARD_CACHE", str(cache))
    assert main(["train", "--resume", "--out", str(fast), "--steps", "250", "--engine", "torch"]) == 0
    assert "runs as an engine" not in capsys.readouterr().err
    assert json.loads((fast / "config.json").read_text())["train"]["engine"] == "torch"


def test_an_engine_of_other_frames_is_refused_before_anything_is_written(
    runs: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (engine,) = runs[2].rglob("vae-*.engine")
    out = tmp_path / "run"
    assert main(["train", "--engine", str(engine), "--goal", str(runs[0] / "goal"), "--out", str(out)]) == 2
    assert "4, 128, 128) float32, and the vae encoder of this run" in capsys.readouterr().err
    assert not out.exists()
