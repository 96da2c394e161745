"""What benchmarks share: timing, the device's limits, and the report."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from genreward_fast.files import write_json

FLUSH_BYTES = 256 * 2**20
LAUNCHING = 2_000_000
"""Cycles of the GPU, about a millisecond, in which a call is queued before it is timed."""


@dataclass(frozen=True)
class Limits:
    """What this device reaches, measured in the same run: copying (bytes read and written) and multiplying matrices."""

    device: str
    gigabytes_per_second: float
    tflops: float

    def milliseconds(self, size: int, flops: int) -> float:
        """The least time to move `size` bytes and do `flops` operations, whichever takes longer."""
        return max(size / (self.gigabytes_per_second * 1e6), flops / (self.tflops * 1e9))


def code_version(folder: Path) -> str:
    """The commit of the checkout that `folder` lies in, with + if it has been changed; empty outside of one."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12"]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder).stdout.strip()


def median_ms(function: Callable[[], Any], device: torch.device, seconds: float = 0.3, flush: bool = False) -> float:
    """Median milliseconds of one call (see `call_times`)."""
    return statistics.median(call_times(function, device, seconds, flush))


def call_times(
    function: Callable[[], Any],
    device: torch.device,
    seconds: float,
    flush: bool = False,
    *,
    warmup: int = 3,
    least: int = 3,
) -> list[float]:
    """Milliseconds of each of as many calls as fit into `seconds` (`least` at least), after `warmup` calls.

    On CUDA it is the device's time between two events. With `flush` the cache is overwritten before each call.
    """
    for _ in range(warmup):
        function()
    scratch = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device) if flush and device.type == "cuda" else None
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        if scratch is not None:
            scratch.zero_()
        if device.type == "cuda":
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            # Keeps the device busy until the call is queued, so that launching is not timed unless it takes long.
            torch.cuda._sleep(LAUNCHING)
            start.record()
            function()
            stop.record()
            stop.synchronize()
            times.append(start.elapsed_time(stop))
        else:
            begin = time.perf_counter()
            function()
            times.append(1e3 * (time.perf_counter() - begin))
    return times


def graph_of(function: Callable[[], Any], calls: int) -> torch.cuda.CUDAGraph:
    """A CUDA graph of so many calls, one after the other."""
    function()  # what is made once, is made before
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            function()
    return graph


def measure_limits(device: torch.device, dtype: torch.dtype) -> Limits:
    """The fastest of several large copies, and of several large matrix products in `dtype`."""
    cuda = device.type == "cuda"
    source = torch.empty(2**30 if cuda else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = min(call_times(lambda: target.copy_(source), device, 0.5))
    size = 8192 if cuda else 512
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = min(call_times(lambda: left @ right, device, 0.5))
    return Limits(device_name(device), 2 * source.nbytes / copy / 1e6, 2 * size**3 / product / 1e9)


def device_name(device: torch.device) -> str:
    """The GPU's name, or the number of CPU threads."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def matmul_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of a large matrix product in this run."""
    size = 8192 if device.type == "cuda" else 512
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / median_ms(lambda: left @ right, device) / 1e9


def arguments(description: str, rows: list[int]) -> argparse.ArgumentParser:
    """The options of every kernel's benchmark."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--rows", type=int, nargs="+", default=rows, help="batch sizes")
    parser.add_argument("--seconds", type=float, default=0.3, help="of measuring, per number")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    return parser


def table(results: list[dict[str, Any]]) -> str:
    """Results of the same keys as lines of text, under their keys."""
    columns = list(results[0])
    rows = [[f"{r[c]:.4g}" if isinstance(r[c], float) else str(r[c]) for c in columns] for r in results]
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in [columns, *rows])


def report(op: str, limits: Limits, results: list[dict[str, Any]], path: Path | None) -> None:
    """Prints a table, and writes the same as JSON to `path`."""
    print(f"{op} on {limits.device}, torch {torch.__version__}")
    print(f"limits measured in this run: {limits.gigabytes_per_second:.0f} GB/s, {limits.tflops:.2f} TFLOP/s")
    print(table(results))
    if path is not None:
        write_json(path, {"op": op, "torch": torch.__version__, "limits": asdict(limits), "results": results})
