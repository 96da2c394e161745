"""Streams on a part of a GPU's multiprocessors; without a GPU, what is said where the driver cannot divide one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from genreward_fast import partition
from genreward_fast.agent.beside import beside, confine, join
from genreward_fast.encoders.graphed import Graphed
from genreward_fast.errors import UserError
from genreward_fast.partition import Partition, Unavailable, partition_of, sibling
from genreward_fast.training.settings import RELEASE_TICKS, TrainConfig


@pytest.mark.parametrize(
    ("driver", "said"),
    [
        (SimpleNamespace(), "has no cuDeviceGet; 12.4 or later"),
        (SimpleNamespace(cuDeviceGet=lambda *_: 801), "cuDeviceGet: CUDA error 801"),
    ],
)
def test_what_the_driver_cannot_do_is_said(driver, said, monkeypatch):
    monkeypatch.setattr(partition, "_driver", lambda: driver)
    with pytest.raises(Unavailable, match=said):
        partition._call("cuDeviceGet", None, 0)


def test_without_a_driver_there_are_no_parts(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(partition.ctypes, "CDLL", missing)
    partition._driver.cache_clear()
    with pytest.raises(Unavailable, match=r"no CUDA driver: libcuda\.so\.1"):
        partition._call("cuDeviceGet")


def test_elsewhere_than_on_cuda_nothing_is_confined():
    device = torch.device("cpu")
    assert confine("test", device, 8) == ""
    with beside("test", torch.zeros(1)):
        pass
    join("test", device)


def test_rows_wait_half_a_window_of_every_environment():
    assert TrainConfig(envs=3).delay == 3 * RELEASE_TICKS
    assert TrainConfig(envs=3, release_delay=5).delay == 5
    assert TrainConfig(envs=3, release_delay=0).delay == 0
    with pytest.raises(UserError, match="--overlap-multiprocessors must not be negative, but is -8"):
        TrainConfig(overlap_multiprocessors=-8)


@pytest.mark.gpu
def test_a_part_computes_the_same_plainly_and_as_a_graph():
    device = torch.device("cuda", 0)
    whole = torch.cuda.get_device_properties(device).multi_processor_count
    part = Partition(device, 16)
    assert 16 <= part.multiprocessors < whole
    stream = part.stream()
    assert partition_of(stream) is part
    assert partition_of(sibling(stream)) is part
    assert partition_of(sibling(torch.cuda.Stream(device))) is None
    x = torch.randn(512, 512, device=device)
    graphed = Graphed(lambda value: (value @ value).relu())
    expected = (x @ x).relu()
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        results = [graphed(x) for _ in range(3)]
    torch.cuda.synchronize(device)
    assert graphed.graphs == 1
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.gpu
def test_a_part_that_cannot_be_made_is_the_whole_gpu():
    device = torch.device("cuda", 0)
    assert confine("too large", device, 10**6)
    with beside("too large", torch.ones(1, device=device)):
        value = torch.ones(3, device=device).sum()
    join("too large", device)
    assert value.item() == 3
