"""Engines that a run builds for itself: once, whole or not at all; and which of them is the fastest."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from genreward_fast.encoders import engine_choice, fastest_engine
from genreward_fast.encoders.engine_cache import cached_engine, cached_engines, cached_path, engine_folder
from genreward_fast.encoders.engine_choice import load_with_engine
from genreward_fast.encoders.engine_source import EngineSource, engine_dtype
from genreward_fast.encoders.fastest_engine import milliseconds, use_fastest
from genreward_fast.encoders.image import ImageEncoder
from genreward_fast.encoders.presets import EncoderConfig, Encoders, load_image_encoder
from genreward_fast.errors import UserError
from genreward_fast.export.backends import BACKENDS

pytest.importorskip("onnxruntime")
ONNX = BACKENDS["onnxruntime"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENREWARD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


@pytest.fixture
def config(dino_folder: Path) -> EncoderConfig:
    return EncoderConfig(preset="tiny", dino=str(dino_folder), image_size=32)


@pytest.fixture
def source(config: EncoderConfig) -> EngineSource[ImageEncoder]:
    return EngineSource("dino", load_image_encoder(config))


class Builds:
    """Counts what the backend builds, and stands in for it after the first: the payload is the same."""

    def __init__(self, payload: Path, build: Callable[..., None]) -> None:
        self.count = 0
        self._payload, self._build = payload, build

    def __call__(self, module: torch.nn.Module, inputs: object, path: Path, *options: object) -> None:
        self.count += 1
        if not self._payload.exists():
            self._build(module, inputs, self._payload, *options)
        path.write_bytes(self._payload.read_bytes())


@pytest.fixture
def builds(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Builds:
    counted = Builds(tmp_path_factory.getbasetemp() / "dino.onnx", ONNX.build)
    monkeypatch.setattr(ONNX, "build", counted, raising=False)
    return counted


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert engine_folder() == tmp_path / "cache" / "engines"
    monkeypatch.delenv("GENREWARD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert engine_folder() == tmp_path / "xdg" / "genreward-fast" / "engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert engine_folder() == Path.home() / ".cache" / "genreward-fast" / "engines"


def test_a_backend_by_name_builds_once(config: EncoderConfig, builds: Builds) -> None:
    lines: list[str] = []
    for _ in range(2):
        encoders = Encoders(config, engine="onnxruntime", say=lines.append)
        assert encoders.image.engine is not None
        assert encoders.image.engine.name == "onnxruntime"
    assert builds.count == 1
    assert len(cached_engines()) == 1
    assert [line.split()[1] for line in lines] == ["building", cached_engines()[0].name]


def test_another_version_lies_beside_it(source: EngineSource, monkeypatch: pytest.MonkeyPatch) -> None:
    before = cached_path(source, "onnxruntime")
    monkeypatch.setattr(ONNX, "version", lambda: "99.0", raising=False)
    assert cached_path(source, "onnxruntime").parent.name == "onnxruntime-99.0"
    assert cached_path(source, "onnxruntime") != before


def test_a_damaged_engine_is_named(config: EncoderConfig, source: EngineSource, builds: Builds) -> None:
    path = cached_engine(source, "onnxruntime", lambda line: None)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"truncated or altered.*delete it"):
        _ = Encoders(config, engine="onnxruntime").image
    assert builds.count == 1


def test_an_interrupted_build_leaves_nothing(
    source: EngineSource, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(module: torch.nn.Module, inputs: object, path: Path, *options: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(ONNX, "build", interrupted, raising=False)
    with pytest.raises(KeyboardInterrupt):
        cached_engine(source, "onnxruntime", lambda line: None)
    assert files(tmp_path) == []


def test_two_builders_of_one_engine_wait_for_each_other(source: EngineSource, builds: Builds) -> None:
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(cached_engine(source, "onnxruntime", lambda line: None)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert builds.count == 1
    assert found == cached_engines() * 3


def test_a_cache_that_cannot_be_written(source: EngineSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENREWARD_CACHE", "/dev/null/cache")
    with pytest.raises(UserError, match="name a folder with GENREWARD_CACHE"):
        cached_engine(source, "onnxruntime", lambda line: None)


class Clock:
    """Hands out times in the order in which things are measured: torch first."""

    def __init__(self, *times: float) -> None:
        self.times = list(times)

    def __call__(self, call: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor) -> float:
        call(pixels)
        return self.times.pop(0)


@pytest.fixture
def only_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastest_engine, "available", lambda: ["onnxruntime"])


@pytest.mark.usefixtures("only_onnx")
def test_the_fastest_is_used_and_remembered(
    source: EngineSource, config: EncoderConfig, builds: Builds, cache: Path
) -> None:
    lines: list[str] = []
    use_fastest(source, lines.append, Clock(5.0, 2.0))
    assert source.encoder.engine is not None
    (record,) = cache.glob("fastest-dino-*.json")
    known = json.loads(record.read_text())
    assert known["fastest"] == "onnxruntime"
    assert [(row["name"], row["milliseconds"]) for row in known["contestants"]] == [
        ("torch", 5.0),
        ("onnxruntime", 2.0),
    ]
    assert known["contestants"][1]["fidelity"] < 1e-4
    assert lines[-1].startswith("engine: dino runs on onnxruntime")

    again = EngineSource("dino", load_image_encoder(config))
    use_fastest(again, lines.append, Clock())  # measures nothing
    assert again.encoder.engine is not None
    assert builds.count == 1


@pytest.mark.usefixtures("only_onnx", "builds")
def test_torch_may_be_the_fastest(source: EngineSource) -> None:
    use_fastest(source, lambda line: None, Clock(1.0, 2.0))
    assert source.encoder.engine is None
    use_fastest(source, lambda line: None, Clock())
    assert source.encoder.engine is None


@pytest.mark.usefixtures("only_onnx")
def test_what_cannot_be_built_takes_no_part(source: EngineSource, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("no such operator: Zap\nand much more")

    monkeypatch.setattr(ONNX, "build", broken, raising=False)
    lines: list[str] = []
    use_fastest(source, lines.append, Clock(3.0))
    assert source.encoder.engine is None
    (record,) = cache.glob("fastest-dino-*.json")
    assert "no such operator: Zap" in json.loads(record.read_text())["contestants"][1]["refused"]
    assert any("left out" in line and "Zap" in line for line in lines)
    assert files(cache) == [record]


@pytest.mark.usefixtures("only_onnx")
def test_auto_builds_a_damaged_engine_anew(source: EngineSource, config: EncoderConfig, builds: Builds) -> None:
    use_fastest(source, lambda line: None, Clock(5.0, 2.0))
    (path,) = cached_engines()
    path.write_bytes(path.read_bytes()[:-10])
    again = EngineSource("dino", load_image_encoder(config))
    use_fastest(again, lambda line: None, Clock())
    assert again.encoder.engine is not None
    assert builds.count == 2


@pytest.mark.usefixtures("only_onnx", "builds")
@pytest.mark.parametrize("content", ["", "{}", '{"subject": {}, "fastest": "steam", "contestants": []}'])
def test_a_damaged_record_is_measured_again(source: EngineSource, cache: Path, content: str) -> None:
    use_fastest(source, lambda line: None, Clock(5.0, 2.0))
    (record,) = cache.glob("fastest-dino-*.json")
    record.write_text(content)
    use_fastest(source, lambda line: None, Clock(1.0, 2.0))
    assert json.loads(record.read_text())["fastest"] == "torch"


@pytest.mark.parametrize(("clock", "dtype"), [((1.0, 2.0), torch.float32), ((2.0, 1.0), torch.float16)])
@pytest.mark.usefixtures("only_onnx")
def test_without_an_engine_the_encoder_keeps_its_dtype(
    config: EncoderConfig, monkeypatch: pytest.MonkeyPatch, clock: tuple[float, float], dtype: torch.dtype
) -> None:
    def load(wanted: torch.dtype | None) -> ImageEncoder:
        return load_image_encoder(config, "cpu", wanted)

    def use(source: EngineSource, say: Callable[[str], None]) -> None:
        use_fastest(source, say, Clock(*clock))

    assert engine_dtype("vae", torch.device("cuda")) == engine_dtype("dino", torch.device("cuda")) == torch.float16
    assert engine_dtype("clip", torch.device("cuda")) is engine_dtype("vae", torch.device("cpu")) is None
    monkeypatch.setattr(engine_choice, "engine_dtype", lambda name, device: torch.float16)
    monkeypatch.setattr(engine_choice, "use_fastest", use)
    encoder = load_with_engine("dino", load, torch.device("cuda"), "auto", lambda line: None)
    assert encoder.dtype == dtype
    assert (encoder.engine is not None) == (dtype == torch.float16)


def test_times_are_medians_of_calls() -> None:
    calls: list[int] = []

    def call(pixels: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        time.sleep(0.02)
        return pixels

    assert milliseconds(call, torch.zeros(1)) >= 20
    assert len(calls) > 3  # that many are not counted
