"""Running a plan: streams, contexts, captures and the kernels' cache, with both flavours of a stand-in for TensorRT."""

import contextlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from genreward_fast.errors import UserError
from genreward_fast.export.backends import BACKENDS
from genreward_fast.export.engine import Manifest, TensorSpec

sys.path.insert(0, str(Path(__file__).parent))
import fake_tensorrt


class Streams:
    """Stands in for torch.cuda's streams: which is current, whether it is being captured, and who waits for whom."""

    def __init__(self):
        self.current, self.capturing, self.waits = self.made(0), False, []

    def made(self, handle):
        stream = SimpleNamespace(cuda_stream=handle)
        stream.wait_stream = lambda other: self.waits.append((handle, other.cuda_stream))
        return stream

    @contextlib.contextmanager
    def on(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before


@pytest.fixture
def streams(monkeypatch, tmp_path):
    monkeypatch.setenv("GENREWARD_CACHE", str(tmp_path / "cache"))
    streams = Streams()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams.current)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: streams.capturing)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: streams.made(99))
    monkeypatch.setattr(torch.cuda, "stream", streams.on)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    return streams


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def flavour(request, monkeypatch):
    fake = fake_tensorrt.module(rtx=request.param == "tensorrt-rtx")
    backend = BACKENDS[request.param]
    monkeypatch.setitem(sys.modules, backend.library, fake)
    return backend, fake


@pytest.fixture
def load(flavour, tmp_path, streams):
    backend = flavour[0]
    manifest = Manifest(
        backend=backend.name,
        backend_version="1.7",
        weights_sha256="ab" * 32,
        payload_sha256="cd" * 32,
        compute_capability="sm_89",
        cpu_features=(),
        inputs=(TensorSpec((2, 3), "float32", 0),),
        output=TensorSpec((2, 3), "float32", 0),
        max_batch=16,
        fidelity=None,
        torch_version=torch.__version__,
        gpu_name=None,
        driver=None,
        cuda=None,
    )

    def load(plan=b"plan"):
        (tmp_path / "payload.plan").write_bytes(plan)
        return backend.load(tmp_path / "payload.plan", manifest, torch.device("cpu"))

    return load


def doubled(engine, batch):
    x = torch.randn(batch, 3)
    return torch.equal(engine(x), 2 * x)


def test_it_runs_every_batch_on_the_current_stream(load, flavour, streams):
    engine, fake = load(), flavour[1]
    with streams.on(streams.made(7)):
        assert all(doubled(engine, batch) for batch in (2, 5, 1))
    (context,) = fake.engine.contexts
    assert context.streams == [7, 7, 7]
    assert context.config.strategy == "USER_MANAGED"
    assert streams.waits == []


def test_the_default_stream_is_never_given_to_tensorrt(load, flavour, streams):
    assert doubled(load(), 2)
    assert flavour[1].engine.contexts[0].streams == [99]
    assert streams.waits == [(99, 0), (0, 99)]


def test_two_streams_have_two_contexts(load, flavour, streams):
    engine = load()
    for handle in (7, 8, 7):
        with streams.on(streams.made(handle)):
            assert doubled(engine, 2)
    assert [context.streams for context in flavour[1].engine.contexts] == [[7, 7], [8]]


def test_a_capture_keeps_a_context_that_has_run_with_its_shapes(load, flavour, streams):
    engine, contexts = load(), flavour[1].engine.contexts
    with streams.on(streams.made(7)):
        doubled(engine, 4)
    streams.capturing = True
    with streams.on(streams.made(8)):
        assert doubled(engine, 4)
        assert doubled(engine, 4)
        with pytest.raises(UserError, match=r"call the engine once with shapes \(\(3, 3\),\) before they are captured"):
            engine(torch.randn(3, 3))
    assert [context.streams for context in contexts] == [[7, 8, 8]]
    streams.capturing = False
    for handle in (7, 8):  # what a graph refers to is never used again
        with streams.on(streams.made(handle)):
            assert doubled(engine, 4)
    assert [context.streams for context in contexts] == [[7, 8, 8], [7], [8]]


def test_failures_are_one_line(load, flavour, streams):
    fake = flavour[1]
    with pytest.raises(UserError, match="does not accept the plan on this GPU"):
        load(b"bad")
    engine = load()
    with pytest.raises(UserError, match=r"TensorRT failed in set_input_shape\('x', \(9, 3\)\)"):
        engine(torch.randn(9, 3))
    fake.engine.works = False
    with pytest.raises(UserError, match="TensorRT failed in execute_async_v3"):
        engine(torch.randn(2, 3))
    fake.engine.names = ["x", "x2", "y"]
    with pytest.raises(UserError, match="2 inputs and 1 outputs where 1 and 1 are needed"):
        load()


def test_rtx_keeps_its_kernels_and_never_changes_them(load, flavour, streams, tmp_path):
    backend, fake = flavour
    file = tmp_path / "cache" / "kernels" / f"{'cd' * 16}.rtx"
    engine = load()
    doubled(engine, 2)
    config = fake.engine.contexts[0].config
    if backend.name == "tensorrt":
        assert not hasattr(config, "cache")
        assert not file.exists()
        return
    assert config.cache is not None
    assert config.dynamic_shapes_kernel_specialization_strategy == "EAGER"
    assert file.read_bytes() == b"kernels"
    file.unlink()
    doubled(engine, 2)
    assert not file.exists()  # nothing new was compiled
    doubled(engine, 3)
    assert file.exists()
    file.unlink()
    file.mkdir()  # neither readable nor writable
    assert doubled(load(), 4)
