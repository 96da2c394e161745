"""Encoders that compute with engines: the same features, and a clear word when an engine does not fit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from genreward_fast.encoders.engine_choice import check_engine
from genreward_fast.encoders.engine_source import EncoderNetwork
from genreward_fast.encoders.export_engines import ExportedEngine, export_engines, table
from genreward_fast.encoders.frozen import FrozenEncoder
from genreward_fast.encoders.presets import EncoderConfig, Encoders
from genreward_fast.errors import UserError
from genreward_fast.export.backends import BACKENDS, relative_rms_error
from genreward_fast.kernels import triton_support

CPU = torch.device("cpu")
BAR = 1e-4  # of build_engine, for float32


def frames(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=generator)


def export(config: EncoderConfig, out: Path, **request: object) -> list[ExportedEngine]:
    wanted = {"encoder": "all", "backend": "onnxruntime", "max_batch": 3, "say": lambda line: None} | request
    return export_engines(config, out=out, device=CPU, **wanted)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def config(vae_folder: Path, dino_folder: Path, clip_folder: Path) -> EncoderConfig:
    folders = {"vae": str(vae_folder), "dino": str(dino_folder), "clip": str(clip_folder)}
    return EncoderConfig(preset="tiny", **folders, clip_frame_size=32, image_size=32, clip_length=4)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def engines(config: EncoderConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an engine of each encoder for batches up to 3."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("engines")
    export(config, folder)
    return folder


def outputs(encoders: Encoders, batch: int) -> dict[str, torch.Tensor]:
    return {
        "vae": encoders.video(frames(batch, 4, 32, 32, seed=batch)),
        "dino": encoders.image(frames(batch, 40, 56, seed=batch)),
        "clip": encoders.text_image.encode_images(frames(batch, 48, 64, seed=batch)),
    }


def compare(config: EncoderConfig, engine: str) -> Encoders:
    plain, fast = Encoders(config), Encoders(config, engine=engine)
    for batch in (1, 3, 7):  # the last is split
        expected = outputs(plain, batch)
        for name, output in outputs(fast, batch).items():
            assert output.dtype == torch.float32
            assert relative_rms_error(output, expected[name]) < BAR, (name, batch)
    assert plain.engine_notes() == []
    assert plain.fingerprints() == fast.fingerprints()  # an engine changes roundings, as a dtype does
    assert len(fast.engine_notes()) == 3
    return fast


def test_engines_stand_in_for_the_encoders(config: EncoderConfig, engines: Path) -> None:
    fast = compare(config, str(engines))
    assert all(f"onnxruntime {BACKENDS['onnxruntime'].version()}" in note for note in fast.engine_notes())
    assert fast.image(frames(0, 32, 32)).shape == (0, 24)
    assert (fast.video.size, fast.video.clip_length, fast.image.dim) == (32, 4, 24)


@pytest.mark.slow
def test_aotinductor_engines_stand_in_for_the_encoders(config: EncoderConfig, tmp_path: Path) -> None:
    if reason := BACKENDS["aotinductor"].why_unavailable():
        pytest.skip(reason)
    export(config, tmp_path, backend="aotinductor")
    compare(config, str(tmp_path))


def test_names_tell_what_is_in_the_files(engines: Path) -> None:
    names = sorted(path.name.rsplit("-", 1)[0] for path in engines.iterdir())
    assert names == [
        "clip-32x32-float32-onnxruntime-cpu",
        "dino-32x32-float32-onnxruntime-cpu",
        "vae-4x32x32-float32-onnxruntime-cpu",
    ]


def test_an_engine_computes_instead_of_the_weights(config: EncoderConfig, engines: Path) -> None:
    encoders = Encoders(config, engine=str(engines))
    before = encoders.image(frames(2, 32, 32))
    for parameter in encoders.image.parameters():
        parameter.zero_()
    assert torch.equal(encoders.image(frames(2, 32, 32)), before)


def test_the_same_engines_are_kept_and_others_refused(config: EncoderConfig, engines: Path, tmp_path: Path) -> None:
    shutil.copytree(engines, tmp_path, dirs_exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    lines: list[str] = []
    kept = export(config, tmp_path, say=lines.append)
    assert [engine.seconds for engine in kept] == [None] * 3
    assert all("kept" in line for line in lines)
    assert [line.split()[2] for line in table(kept)[1:]] == ["kept"] * 3
    with pytest.raises(UserError, match="largest batch is 3, not 2; replace it with --overwrite"):
        export(config, tmp_path, encoder="dino", max_batch=2)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    (dino,) = tmp_path.glob("dino-*")
    dino.write_bytes(dino.read_bytes()[:-100])
    with pytest.raises(UserError, match="truncated or altered"):
        export(config, tmp_path, encoder="dino")
    replaced = export(config, tmp_path, encoder="dino", max_batch=2, overwrite=True)
    assert replaced[0].manifest.max_batch == 2
    assert replaced[0].seconds is not None


def test_a_single_file_serves_its_encoder_alone(config: EncoderConfig, engines: Path) -> None:
    lines: list[str] = []
    (file,) = engines.glob("dino-*")
    encoders = Encoders(config, engine=str(file), say=lines.append)
    assert encoders.image.engine is not None
    assert encoders.video.engine is None
    assert lines == [f"engine: none for vae in {file}: it runs on torch"]


def test_engines_that_do_not_fit_are_refused(
    config: EncoderConfig, engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"takes \(batch, 3, 32, 32\) float32, and the dino encoder .* 48, 48\)"):
        _ = Encoders(replace(config, image_size=48), engine=str(engines)).image
    with pytest.raises(UserError, match=r"vae-.*takes .* 4, 32, 32\) float32, and the vae encoder .* 8, 32, 32\)"):
        _ = Encoders(replace(config, clip_length=8), engine=str(engines)).video
    monkeypatch.setattr(BACKENDS["onnxruntime"], "version", lambda: "0.1", raising=False)
    with pytest.raises(UserError, match=r"built with onnxruntime .*, and 0\.1 is installed"):
        _ = Encoders(config, engine=str(engines)).image


def test_other_weights_are_refused(config: EncoderConfig, engines: Path, tmp_path: Path) -> None:
    other = Encoders(config).image
    with torch.no_grad():
        next(iter(other.vit.parameters())).add_(1e-3)
    other.vit.save_pretrained(tmp_path / "dino")
    with pytest.raises(UserError, match="built from other weights"):
        _ = Encoders(replace(config, dino=str(tmp_path / "dino")), engine=str(engines)).image


def test_a_truncated_engine_is_refused(config: EncoderConfig, engines: Path, tmp_path: Path) -> None:
    (whole,) = engines.glob("dino-*")
    (tmp_path / whole.name).write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(UserError, match="truncated or altered"):
        _ = Encoders(config, engine=str(tmp_path)).image


def test_of_several_engines_the_first_that_fits_is_taken(config: EncoderConfig, engines: Path, tmp_path: Path) -> None:
    (whole,) = engines.glob("dino-*")
    (tmp_path / "dino-0.engine").write_bytes(whole.read_bytes()[:-100])
    (tmp_path / "dino-1.engine").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"none of its 2 engines for dino runs here; the first: .*dino-0.engine"):
        _ = Encoders(config, engine=str(tmp_path)).image
    shutil.copy(whole, tmp_path / "dino-2.engine")
    assert Encoders(config, engine=str(tmp_path)).image.engine is not None


def test_auto_on_a_cpu_is_torch_and_measures_nothing(
    config: EncoderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENREWARD_CACHE", str(tmp_path / "cache"))
    assert Encoders(config, engine="auto").image.engine is None
    assert not (tmp_path / "cache").exists()


def test_what_engine_may_be(engines: Path, tmp_path: Path) -> None:
    for good in ("auto", "torch", "onnxruntime", str(engines), str(next(engines.iterdir()))):
        check_engine(good)
    with pytest.raises(UserError, match="--engine steam: no such backend, file or folder"):
        check_engine("steam")
    with pytest.raises(UserError, match="holds no engines"):
        check_engine(str(tmp_path))
    (tmp_path / "mine.engine").touch()
    with pytest.raises(UserError, match="must begin with vae-, dino- or clip-"):
        check_engine(str(tmp_path / "mine.engine"))


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"backend": "steam"}, "steam: no such engine backend"),
        ({"max_batch": 0}, "--max-batch must be at least 1"),
        ({"hardware": "89"}, "--for 89"),
    ],
)
def test_bad_requests(config: EncoderConfig, tmp_path: Path, request_: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        export(config, tmp_path, encoder="dino", **request_)
    assert list(tmp_path.iterdir()) == []


def test_a_backend_that_knows_this_machine_only_says_so(config: EncoderConfig, tmp_path: Path) -> None:
    if reason := BACKENDS["aotinductor"].why_unavailable():
        pytest.skip(reason)
    with pytest.raises(UserError, match="sm_89"):
        export(config, tmp_path, encoder="dino", backend="aotinductor", hardware="sm_89")
    assert list(tmp_path.iterdir()) == []


class Allowed(FrozenEncoder):
    """Adds 1 to its input where kernels may be Triton's."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)
        self.freeze()

    @property
    def weights(self) -> torch.nn.Module:
        return self.linear

    def network(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.linear(pixels) + int(triton_support._allowed)


def test_graphs_are_recorded_in_plain_operations() -> None:
    network: Callable[..., torch.Tensor] = EncoderNetwork(Allowed())
    program = torch.export.export(network, (torch.randn(2, 3),), strict=False).module()  # type: ignore[arg-type]
    x = torch.randn(2, 3)
    torch.testing.assert_close(network(x) - program(x), torch.ones(2, 3))
