"""Tests marked `gpu` are skipped where there is no GPU; tests that run side by side take one thread each.

Triton kernels run without a GPU in Triton's interpreter. It is chosen when a kernel is decorated, so such tests run in
a process of their own, started by `run_interpreted`; on a machine with a GPU the same tests run there natively.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported; processes that tests start inherit it
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from genreward_fast.encoders import presets
from genreward_fast.kernels.triton_support import INTERPRETED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def initial_weights(tmp_path_factory):
    """Tests see preset tiny as if no weights shipped, so that new weights change none of them; see `shipped_weights`.

    Processes that tests start see what ships.
    """
    shipped = presets.SHIPPED
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presets, "SHIPPED", tmp_path_factory.mktemp("no-weights"))
        yield shipped


@pytest.fixture
def shipped_weights(initial_weights, monkeypatch):
    """The folder of the weights that ship, which preset tiny takes in this test."""
    monkeypatch.setattr(presets, "SHIPPED", initial_weights)
    return initial_weights


@pytest.fixture
def triton_device():
    """The device to launch kernels on."""
    pytest.importorskip("triton")
    if INTERPRETED:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    pytest.skip("neither a GPU nor TRITON_INTERPRET=1")


@pytest.fixture
def run_interpreted():
    """Runs tests of a file in Triton's interpreter, where all takes the path that it takes on CUDA; they must pass."""

    def run(file: str, which: str = "on_triton", seconds: float = 300, excused: str | None = None) -> None:
        """`excused`: what pytest prints if the interpreter itself does not run here."""
        pytest.importorskip("triton")
        if INTERPRETED:
            pytest.skip("this is the interpreter's process")
        command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", which, file]
        environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        root = Path(__file__).parents[1]
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=seconds)
        if excused is not None and excused in done.stdout:
            pytest.skip("this version of Triton's interpreter does not run with this version of numpy")
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(r"\d+ passed", done.stdout), done.stdout
        assert "skipped" not in done.stdout, done.stdout

    return run


@pytest.fixture
def fresh_generator():
    """A generator seeded anew in every run; a failure shows the seed."""
    seed = torch.seed() % 2**31
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)


class MadeFloats(TorchDispatchMode):
    """By floating dtype, the operations that make such numbers inside, gradients included."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[torch.dtype, set[str]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.is_floating_point():
                self.made.setdefault(x.dtype, set()).add(str(function))
        return result


@pytest.fixture
def made_floats():
    return MadeFloats
