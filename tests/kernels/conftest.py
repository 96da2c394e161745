"""Ways to run a Triton kernel without a GPU: in Triton's interpreter, and compiled for a given chip.

The interpreter is chosen when a kernel is decorated, so its tests run in a process of their own, started by
`run_interpreted`; on a machine with a GPU the same tests run there natively.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
SHARED_MEMORY_KB = {80: 163, 86: 99, 89: 99, 90: 227, 120: 99}  # that one program may use, by compute capability


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
    """Runs those tests of a file that take `triton_device`, in Triton's interpreter; they must pass."""

    def run(file: str) -> None:
        pytest.importorskip("triton")
        if INTERPRETED:
            pytest.skip("this is the interpreter's process")
        command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "on_triton", file]
        environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        root = Path(__file__).parents[2]
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300)
        if "only 0-dimensional arrays can be converted" in done.stdout:
            pytest.skip("this version of Triton's interpreter does not run with this version of numpy")
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(r"\d+ passed", done.stdout), done.stdout
        assert "skipped" not in done.stdout, done.stdout

    return run


@pytest.fixture
def poisoned(monkeypatch):
    """Fills memory from `torch.empty` with NaN, so that what a kernel forgets to write shows."""
    empty = torch.empty

    def poison(*args, **kwargs):
        made = empty(*args, **kwargs)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poison)


@pytest.fixture
def compile_for():
    """Compiles a kernel for a compute capability without a GPU; returns the shared memory that it takes, in bytes."""
    triton = pytest.importorskip("triton")
    if INTERPRETED:
        pytest.skip("the interpreter compiles nothing")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def compile_kernel(kernel, capability: int, signature: dict[str, str], constants: dict, num_warps: int) -> int:
        names = {name: "constexpr" for name in constants} | signature
        source = ASTSource(fn=kernel, signature={n: names[n] for n in kernel.arg_names}, constexprs=constants)
        target = GPUTarget("cuda", capability, 32)
        compiled = triton.compile(source, target=target, options={"num_warps": num_warps})
        assert len(compiled.asm["cubin"]) > 0
        shared = compiled.metadata.shared
        assert shared <= SHARED_MEMORY_KB[capability] * 1024
        assert shared <= 99 * 1024  # one configuration for every chip
        return shared

    return compile_kernel


def relative_rms(value: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the error, relative to that of the expected values."""
    value, expected = value.double(), expected.double()
    return ((value - expected).square().mean().sqrt() / expected.square().mean().sqrt()).item()


@pytest.fixture(name="relative_rms")
def relative_rms_fixture():
    return relative_rms


@pytest.fixture
def fresh_generator():
    """A generator seeded anew in every run; a failure shows the seed."""
    seed = torch.seed() % 2**31
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)
