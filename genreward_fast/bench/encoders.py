"""`genreward bench --what vae|dino|clip`: the encoders beside the libraries' own modules and the hardware's limit."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from genreward_fast.bench.encoder_work import Request, Work, measure, reason
from genreward_fast.bench.timing import Limits, measure_limits
from genreward_fast.errors import UserError
from genreward_fast.export.backends import backend
from genreward_fast.files import write_json

ENCODERS = {
    "vae": "genreward_fast.bench.encoder_vae",
    "dino": "genreward_fast.bench.encoder_dino",
    "clip": "genreward_fast.bench.encoder_clip",
}
"""Modules with `check(request)`, which refuses sizes, and `works(request) -> Iterator[Work]`."""

COLUMNS = {
    "ms": "ms",
    "p10 ms": "p10",
    "p90 ms": "p90",
    "TFLOP/s": "TFLOP/s",
    "% of limit": "% of limit",
    "peak GB": "peak GB",
    "relative error": "error",
    "cosine": "cosine",
    "first s": "first s",
}
HEADER = f"{'':<42}" + "".join(title.rjust(11) for title in COLUMNS.values())
LEGEND = (
    "error, cosine: from the library's own module in float32 on the same frames; peak: memory that PyTorch held; "
    "first: building, compiling and the first result"
)


def check(names: Iterable[str], request: Request) -> None:
    """
    Args:
        names: of encoders.

    Raises:
        UserError: a size is not positive or none that these encoders take, or there is no such engine backend.
    """
    for name in ("batch", "frames", "pixels"):
        for value in getattr(request, name):
            if value < 1:
                raise UserError(f"--{name} must be at least 1, not {value}")
    for name in request.engines:
        backend(name)
    for name in names:
        importlib.import_module(ENCODERS[name]).check(request)


def run(encoder: str, request: Request, path: Path | None) -> None:
    """Times one encoder, prints a table row by row, and writes the same to `path` after every shape."""
    record, limits = begin(encoder, request)
    for work in importlib.import_module(ENCODERS[encoder]).works(request):
        record["results"] += timed(work, request, limits)
        if path is not None:
            write_json(path, record)


def begin(title: str, request: Request) -> tuple[dict[str, Any], Limits]:
    """Measures the limits, prints what is above the tables, and gives what a file holds before its first result."""
    limits = measure_limits(request.place, request.dtype)
    dtype = str(request.dtype).removeprefix("torch.")
    print(f"{title} on {limits.device}, torch {torch.__version__}, {dtype}, {request.note}")
    print(f"limits measured in this run: {limits.gigabytes_per_second:.0f} GB/s, {limits.tflops:.2f} TFLOP/s")
    record = {
        "op": title,
        "torch": torch.__version__,
        "dtype": dtype,
        "weights": request.note,
        "limits": asdict(limits),
        "results": [],
    }
    return record, limits


def timed(work: Work, request: Request, limits: Limits) -> Iterator[dict[str, Any]]:
    """The numbers of each contestant, which are also printed."""
    limit = limits.milliseconds(work.size, work.flops)
    print(f"\n{work.encoder} {work.shape}: {work.flops / 1e12:.3g} TFLOP, limit {limit:.4g} ms\n{HEADER}")
    try:
        expected = work.reference()
    except Exception as error:  # a GPU with little memory; smaller shapes may still fit
        result = {"encoder": work.encoder, "shape": work.shape, "name": "reference in float32", "error": reason(error)}
        print(line(result), flush=True)
        yield result
        return
    for name in work.contestants:
        print(f"  {name} …", end="\r", file=sys.stderr, flush=True)
        result = measure(work, name, expected, request, limits) | {"limit ms": limit, "TFLOP": work.flops / 1e12}
        print(line(result), flush=True)
        yield result
    print(LEGEND)


def line(result: dict[str, Any]) -> str:
    """A result as it is printed."""
    start = f"{result['name']:<42}"
    if "error" in result:
        return f"{start}not timed: {result['error']}"
    return start + "".join(cell(name, result[name]).rjust(11) if name in result else " " * 11 for name in COLUMNS)


def cell(name: str, value: float) -> str:
    return f"{value:.7f}" if name == "cosine" else f"{value:.2e}" if name == "relative error" else f"{value:.4g}"
