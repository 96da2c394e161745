"""`genreward bench --what agent`: updates and acting of this agent and of others, side by side."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from genreward_fast.bench.contestant import Spec, command
from genreward_fast.bench.timing import device_name, matmul_tflops
from genreward_fast.files import write_json

TFLOP = {"12M": 0.958, "25M": 2.10, "50M": 3.68, "100M": 8.18, "200M": 14.4}
"""Multiplications and additions of one update's matrix products and convolutions at 16 x 64 with 15 imagined steps,
in 10¹²: counted (torch.utils.flop_counter) in the plain path, whose decoder is in the sub-pixel form."""

START_SECONDS, MEASURING_SECONDS = 300.0, 300.0
CACHES = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor", "CUDA_CACHE_PATH": "cuda"}


@dataclass(frozen=True)
class Request:
    """What is to be compared.

    Attributes:
        spec: sizes of an update, device, precision.
        sizes: of the agents.
        plain: time ours without CUDA graphs, too.
        cold_start: time starts with empty caches and with warm ones.
        environments: time ours with the real environment, too.
        r2dreamer, dreamerv3_torch: checkouts, if they are to take part.
        torchrl: a checkout; "" for the installed package.
        compile_minutes: how long torch.compile may take for a peer's first update; 0 to run it eagerly at once.
    """

    spec: Spec
    sizes: tuple[str, ...] = ("12M",)
    plain: bool = True
    cold_start: bool = True
    environments: bool = True
    r2dreamer: Path | None = None
    dreamerv3_torch: Path | None = None
    torchrl: str | None = None
    compile_minutes: float = 10.0


def run(request: Request, path: Path | None) -> list[dict[str, Any]]:
    """Times everything that was asked for, prints a table row by row, and writes the same to `path`."""
    spec = request.spec
    device = torch.device(spec.device)
    tflops = matmul_tflops(device, getattr(torch, spec.dtype))
    name = device_name(device)
    print(f"agent on {name}, torch {torch.__version__}; matrix products reach {tflops:.2f} TFLOP/s in this run")
    print(f"batch {spec.batch_size} x {spec.batch_length}, images 64 x 64, {spec.imagination} imagined steps\n")
    if device.type == "cuda":
        torch.cuda.empty_cache()
    record = {
        "device": name,
        "torch": torch.__version__,
        "tflops": tflops,
        "shape": [spec.batch_size, spec.batch_length, spec.imagination],
        "train ratio": spec.train_ratio,
    }
    results: list[dict[str, Any]] = []
    print(HEADER)
    for result in contest(request):
        add_share(result, spec, tflops)
        print("\n".join(lines(result, spec)), flush=True)
        results.append(result)
        if path is not None:  # after each: a long comparison may be cut off
            write_json(path, record | {"results": results})
    return results


def contest(request: Request) -> Iterator[dict[str, Any]]:
    """One result after the other, ours first."""
    for size in request.sizes:
        spec = replace(request.spec, size=size)
        capture = spec.device.startswith("cuda")
        for captured in [True, False] if capture and request.plain else [capture]:
            label = "ours, one CUDA graph" if captured else "ours, plain"
            entry = replace(spec, capture=captured, environments=request.environments and (captured or not capture))
            yield ours(label, entry, request.cold_start)
    for size in request.sizes:
        spec = replace(request.spec, size=size)
        if request.r2dreamer is not None:
            yield r2dreamer(replace(spec, adapter="r2dreamer", checkout=str(request.r2dreamer)), request)
        if request.dreamerv3_torch is not None and size == request.sizes[0]:
            peer = replace(spec, size="12M", adapter="dreamerv3-torch", checkout=str(request.dreamerv3_torch))
            for dtype in ("float32", "float16") if peer.device.startswith("cuda") else ("float32",):
                yield timed("dreamerv3-torch", replace(peer, dtype=dtype))
        if request.torchrl is not None:
            yield timed("TorchRL", replace(spec, adapter="torchrl", checkout=request.torchrl or None))


def ours(label: str, spec: Spec, cold_start: bool) -> dict[str, Any]:
    """With `cold_start` the process that is timed begins with empty caches, and a second one finds them filled."""
    if not cold_start:
        return timed(label, spec) | {"captured": spec.capture}
    with tempfile.TemporaryDirectory() as caches:
        result = timed(label, spec, caches=Path(caches))
        if "error" not in result:
            warm = timed(label, replace(spec, start_only=True), caches=Path(caches))
            result["cold start s"] = result["s to the first update"]
            if "error" not in warm:
                result["warm start s"] = warm["s to the first update"]
    return result | {"captured": spec.capture}


def r2dreamer(spec: Spec, request: Request) -> dict[str, Any]:
    """Compiled if its first update comes in time, else eager, and says so."""
    failed = None
    if request.compile_minutes > 0 and spec.device.startswith("cuda"):
        with tempfile.TemporaryDirectory() as caches:
            compiled = replace(spec, compile=True)
            result = timed("r2dreamer", compiled, caches=Path(caches), start=60 * request.compile_minutes)
        if "error" not in result:
            return result
        failed = f"torch.compile: {result['error']}"
    result = timed("r2dreamer", spec)
    if failed:
        result["notes"] = [*result.get("notes", []), failed]
    return result


def timed(label: str, spec: Spec, caches: Path | None = None, start: float = START_SECONDS) -> dict[str, Any]:
    """The numbers of a contestant, or the reason why there are none."""
    return {"name": label, "size": spec.size} | run_process(spec, caches, start)


def run_process(spec: Spec, caches: Path | None, start: float) -> dict[str, Any]:
    """Runs a contestant's process, and ends it if its first update or its measuring takes too long."""
    environment = os.environ | ({name: str(caches / folder) for name, folder in CACHES.items()} if caches else {})
    with tempfile.TemporaryDirectory() as folder:
        target, output = Path(folder) / "result.json", Path(folder) / "output"
        with output.open("w") as stream:
            begin = time.monotonic()
            process = subprocess.Popen(
                command(spec, target), stdout=stream, stderr=stream, env=environment, start_new_session=True
            )
            reason = watch(process, target, begin, start, MEASURING_SECONDS + 10 * spec.seconds)
        result: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {}
        if reason and "update ms" not in result:
            return {"error": reason}
        if process.returncode and "error" not in result:
            last = [line for line in output.read_text(errors="replace").splitlines() if line.strip()][-1:]
            return {"error": f"ended with exit code {process.returncode}: {''.join(last)[:300]}"}
        return result


def watch(process: subprocess.Popen, target: Path, begin: float, start: float, measuring: float) -> str | None:
    """Waits for the process; if it had to be ended, why."""
    try:
        while process.poll() is None:
            seconds = time.monotonic() - begin
            if not target.exists() and seconds > start:
                return f"no update within {start:.0f} s"
            if seconds > start + measuring:
                return f"not ready after {seconds:.0f} s"
            time.sleep(0.05)
        return None
    finally:
        # Compilers leave workers behind, and so does whoever is interrupted.
        if process.poll() is None or process.returncode:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def add_share(result: dict[str, Any], spec: Spec, tflops: float) -> None:
    """Percent of what matrix products reach in this run."""
    counted = result.get("name", "").startswith("ours") and result["size"] in TFLOP and "update ms" in result
    if counted and (spec.batch_size, spec.batch_length, spec.imagination) == (16, 64, 15):
        result["% of limit"] = 100 * TFLOP[result["size"]] / tflops * 1e3 / result["update ms"]


COLUMNS = {
    "update ms": "update ms",
    "% of limit": "% of limit",
    "act 1 ms": "act 1",
    "act 4 ms": "act 4",
    "act 16 ms": "act 16 ms",
    "steps/s": "steps/s",
    "steps/s with environments": "with envs",
    "peak GB": "peak GB",
    "cold start s": "cold s",
    "warm start s": "warm s",
}
HEADER = f"{'agent':<22}{'size':<6}{'dtype':<18}" + "".join(title.rjust(11) for title in COLUMNS.values())


def lines(result: dict[str, Any], spec: Spec) -> list[str]:
    """A result as it is printed: a row, and its notes below."""
    start = f"{result['name']:<22}{result['size']:<6}"
    if "error" in result:
        return [start + f"not timed: {result['error']}", *notes(result)]
    cells = [f"{result[name]:.4g}" if name in result else "" for name in COLUMNS]
    return [start + f"{result['dtype']:<18}" + "".join(cell.rjust(11) for cell in cells), *notes(result)]


def notes(result: dict[str, Any]) -> list[str]:
    return [f"    {note}" for note in result.get("notes", [])]
