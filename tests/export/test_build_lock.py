"""Several builders of one engine, and builders that end badly."""

import errno
import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from genreward_fast.errors import UserError
from genreward_fast.export import backends
from genreward_fast.export.backends import build_engine, load_engine
from genreward_fast.export.engine import CheckedEngine

X = torch.linspace(-1, 1, 12).reshape(4, 3)


class Negative(torch.nn.Module):
    def forward(self, x):
        return -x


class SlowBackend:
    """Builds `Negative` once it is allowed to."""

    name = "slow"
    suffix = ".bin"
    has_host_code = False

    def __init__(self):
        self.builds, self.building, self.go_on = 0, threading.Event(), threading.Event()
        self.error = None

    def version(self):
        return "1"

    def why_unavailable(self):
        return None

    def targeting(self, compute_capability):
        raise UserError(f"slow knows no {compute_capability}")

    def build(self, module, example_inputs, path, dynamic_batch=True, max_batch=1024):
        self.builds += 1
        self.building.set()
        assert self.go_on.wait(60)
        if self.error is not None:
            raise self.error
        path.write_bytes(b"-")

    def load(self, path, manifest, device):
        return CheckedEngine(self.name, manifest, device, torch.neg)


@pytest.fixture
def slow(monkeypatch):
    entry = SlowBackend()
    monkeypatch.setitem(backends.BACKENDS, "slow", entry)
    return entry


def build(path, results, **options):
    results.append(build_engine(Negative().eval(), (X,), path, "slow", **options))


@pytest.mark.parametrize(("second", "builds"), [(1024, 1), (512, 2)])
def test_who_waited_takes_the_engine_if_it_is_the_same(slow, tmp_path, capfd, second, builds):
    path, results = tmp_path / "negative.engine", []
    threads = [threading.Thread(target=build, args=(path, results), kwargs={"max_batch": m}) for m in (1024, second)]
    threads[0].start()
    assert slow.building.wait(60)
    threads[1].start()
    told, deadline = "", time.monotonic() + 60
    while "waiting" not in told:
        assert time.monotonic() < deadline
        time.sleep(0.01)
        told += capfd.readouterr().err
    slow.go_on.set()
    for thread in threads:
        thread.join(60)
    assert told == f"{path}: another process is building this engine; waiting for it\n"
    assert slow.builds == builds
    assert [manifest.max_batch for manifest in results] == [1024, second]
    assert load_engine(path, "cpu").manifest == results[-1]
    assert os.listdir(tmp_path) == ["negative.engine"]


def test_an_engine_is_built_anew_when_nobody_else_was_building_it(slow, tmp_path):
    slow.go_on.set()
    for _ in range(2):
        build(tmp_path / "negative.engine", [])
    assert slow.builds == 2


def test_a_killed_builder_leaves_no_lock(slow, tmp_path):
    path = tmp_path / "negative.engine"
    code = """
import sys, time
from pathlib import Path
from genreward_fast.export.build_lock import only_builder
with only_builder(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(300)
"""
    builder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert builder.stdout.readline() == "locked\n"
    builder.kill()
    builder.wait()
    slow.go_on.set()
    build(path, [])
    assert os.listdir(tmp_path) == ["negative.engine"]


def test_a_full_disk_is_one_line(slow, tmp_path, monkeypatch):
    slow.go_on.set()
    slow.error = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(UserError, match=r"Negative cannot be built with slow: .*No space left on device; make room"):
        build(tmp_path / "negative.engine", [])
    slow.error = None

    def full(path, *arguments):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(backends, "write_engine_file", full)
    with pytest.raises(UserError, match=r"negative\.engine: cannot be built: .*No space left on device.*; make room"):
        build(tmp_path / "negative.engine", [])
    assert os.listdir(tmp_path) == []
    monkeypatch.undo()
    monkeypatch.setitem(backends.BACKENDS, "slow", slow)
    build(tmp_path / "negative.engine", [])
    monkeypatch.setattr(backends, "payload_file", full)
    with pytest.raises(UserError, match=r"negative\.engine: cannot be read: .*No space left on device.*; make room"):
        load_engine(tmp_path / "negative.engine", "cpu")


@pytest.mark.parametrize(
    ("target", "message"), [("sm89", "sm89: not a compute capability"), ("sm_89", "slow knows no")]
)
def test_a_gpu_that_is_not_here_needs_a_backend_that_can(slow, tmp_path, target, message):
    with pytest.raises(UserError, match=message):
        build(tmp_path / "negative.engine", [], compute_capability=target)
    assert slow.builds == 0
