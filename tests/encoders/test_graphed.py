"""CUDA graphs of encoders: what is recorded, kept and dropped; on a GPU, that replays are the encoder's own results."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from genreward_fast.encoders import graphed as module
from genreward_fast.encoders.graphed import Graphed
from genreward_fast.encoders.presets import EncoderConfig, Encoders, load_image_encoder


class Recorder(TorchDispatchMode):
    def __init__(self, graph: FakeGraph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.graph.calls.append((function, args, kwargs or {}, result))
        return result


class FakeGraph:
    """Runs what was recorded again, on the same memory, as a CUDA graph does."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self.given: object = None

    def pool(self) -> FakeGraph:
        return self

    def replay(self) -> None:
        for function, args, kwargs, result in self.calls:
            for again, was in zip(tree_leaves(function(*args, **kwargs)), tree_leaves(result)):
                if isinstance(was, Tensor) and again.data_ptr() != was.data_ptr():
                    was.copy_(again)


class FakeCuda:
    """As much of `torch.cuda` as `Graphed` uses, for tensors on the CPU; `log` tells what was asked of it."""

    CUDAGraph = FakeGraph

    def __init__(self) -> None:
        self.log: list[str] = []
        self.capturing = False
        self.pools: list[object] = []
        self.Event = lambda: SimpleNamespace(
            wait=lambda stream: self.log.append(f"{stream.name} waits"),
            record=lambda stream: self.log.append(f"{stream.name} records"),
        )
        self.name = "caller"

    def _stream(self, name: str) -> SimpleNamespace:
        wait = lambda other: self.log.append(f"{name} after {other.name}")  # noqa: E731
        return SimpleNamespace(name=name, cuda_stream=0, wait_stream=wait)

    def Stream(self, device: torch.device) -> SimpleNamespace:
        return self._stream("side")

    def current_stream(self, device: torch.device | None = None) -> SimpleNamespace:
        return self._stream(self.name)

    def is_current_stream_capturing(self) -> bool:
        return self.capturing

    def synchronize(self, device: torch.device) -> None:
        self.log.append("synchronised")

    @contextmanager
    def stream(self, stream: SimpleNamespace):
        yield

    @contextmanager
    def device(self, device: torch.device):
        yield

    @contextmanager
    def graph(self, graph: FakeGraph, pool: object, stream: SimpleNamespace, capture_error_mode: str):
        assert capture_error_mode == "thread_local"
        self.pools.append(pool)
        with Recorder(graph):
            yield


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    cuda = FakeCuda()
    monkeypatch.setattr(module, "cuda", cuda)
    monkeypatch.setattr(module, "sibling", lambda stream: cuda.Stream(None))
    monkeypatch.setattr(module, "_can_record", lambda inputs: not cuda.capturing)
    return cuda


class Doubled:
    """x + x and how often it has really been called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.float() + x.float()


def test_the_second_call_records_and_later_ones_replay(fake: FakeCuda) -> None:
    function = Doubled()
    run = Graphed(function)
    results = []
    for number in range(5):
        x = torch.full((3, 2), number, dtype=torch.uint8)
        results.append(run(x))
        assert run.graphs == int(number > 0)
    # Once plainly, then to warm up and to record.
    assert function.calls == 3
    for number, result in enumerate(results):  # none was overwritten by a later call
        assert torch.equal(result, torch.full((3, 2), 2.0 * number))


def test_each_shape_and_dtype_has_its_own_and_they_share_memory(fake: FakeCuda) -> None:
    run = Graphed(Doubled())
    for x in (torch.ones(2), torch.ones(3), torch.ones(3, dtype=torch.uint8)):
        for factor in (1, 2):
            assert torch.equal(run(x * factor), 2.0 * factor * torch.ones(len(x)))
    assert run.graphs == 3
    assert fake.pools[0] is None
    assert fake.pools[1] is not None
    assert fake.pools[1] is fake.pools[2]


def test_the_least_recently_used_is_dropped_after_a_wait(fake: FakeCuda) -> None:
    function = Doubled()
    run = Graphed(function, limit=2)
    for length in (1, 1, 2, 2, 1):
        run(torch.ones(length))
    assert run.graphs == 2
    assert "synchronised" not in fake.log
    run(torch.ones(3))  # in the place of 2
    assert run.graphs == 1
    assert fake.log.count("synchronised") == 1
    before = function.calls
    run(torch.ones(1))
    assert function.calls == before
    run(torch.ones(2))
    assert function.calls == before + 1


def test_shapes_that_never_come_twice_in_a_row_of_few_are_not_recorded(fake: FakeCuda) -> None:
    run = Graphed(Doubled(), limit=2)
    for length in (1, 2, 3) * 4:
        run(torch.ones(length))
    assert run.graphs == 0
    assert fake.log == []


def test_streams_wait_for_each_other_and_the_host_for_none(fake: FakeCuda) -> None:
    run = Graphed(Doubled())
    for _ in range(2):
        run(torch.ones(2))
    fake.log.clear()
    for name in ("caller", "other"):
        fake.name = name
        run(torch.ones(2))
    assert fake.log == ["caller waits", "caller records", "other waits", "other records"]


def test_inside_a_caller_s_graph_it_runs_plainly(fake: FakeCuda) -> None:
    run = Graphed(Doubled())
    fake.capturing = True
    for _ in range(3):
        assert torch.equal(run(torch.ones(2)), torch.full((2,), 2.0))
    assert run.graphs == 0


def test_moving_an_encoder_forgets_its_graphs(fake: FakeCuda) -> None:
    encoder = load_image_encoder(EncoderConfig(preset="tiny"))
    encoder.graphs = True
    pictures = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    expected = encoder(pictures)
    other = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    encoder(other)
    assert encoder._features.graphs == 1
    torch.testing.assert_close(encoder(pictures), expected, atol=1e-5, rtol=1e-5)
    encoder.to(torch.float64)
    assert encoder._features.graphs == 0
    torch.testing.assert_close(encoder(pictures), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("wanted", [True, False])
def test_nothing_is_recorded_where_it_is_not_wanted(fake: FakeCuda, wanted: bool) -> None:
    encoder = load_image_encoder(EncoderConfig(preset="tiny"))
    assert encoder.graphs
    encoder.graphs = wanted
    for _ in range(3):
        encoder(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
    assert encoder._features.graphs == wanted


def test_without_a_gpu_nothing_is_recorded() -> None:
    function = Doubled()
    run = Graphed(function)
    for _ in range(3):
        run(torch.ones(2))
    assert (run.graphs, function.calls) == (0, 3)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["video", "image", "clip"])
def test_replays_are_the_encoder_s_results_on_cuda(name: str) -> None:
    """With inputs that differ, in two streams, beside a graph of another shape."""
    encoders = Encoders(EncoderConfig(preset="tiny"), "cuda")
    encoder = {"video": encoders.video, "image": encoders.image, "clip": encoders.text_image}[name]
    encoder.graphs = True
    call = encoder.encode_images if name == "clip" else encoder
    shape = (16, 128, 128, 3) if name == "video" else (64, 64, 3)
    inputs = [torch.randint(0, 256, (1 + i % 2, *shape), dtype=torch.uint8, device="cuda") for i in range(8)]
    with torch.no_grad():
        expected = [encoder._encode_frames(x) for x in inputs]
    for x in inputs[:4]:
        call(x)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    results = []
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")  # a replay must not wait for the device
    try:
        for i, x in enumerate(inputs):
            with torch.cuda.stream(side if i % 3 == 0 else torch.cuda.current_stream()):
                results.append(call(x))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    recorded = encoder._graphed[0].graphs
    assert recorded == 2
    for result, wanted in zip(results, expected):
        assert torch.equal(result, wanted)
