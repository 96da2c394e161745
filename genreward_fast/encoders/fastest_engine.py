"""What runs an encoder soonest on this machine: measured once, then remembered beside the cached engines."""

from __future__ import annotations

import contextlib
import hashlib
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cattrs
import torch
from torch import Tensor

from genreward_fast.encoders.engine_cache import Say, cached_engine, engine_folder
from genreward_fast.encoders.engine_source import EngineSource
from genreward_fast.errors import UserError, first_line
from genreward_fast.export.backends import BACKENDS, available
from genreward_fast.export.machine import compute_capability
from genreward_fast.files import read_json, write_json

TORCH = "torch"
_WARM_UP, _SECONDS, _MOST_CALLS = 3, 1.0, 100


@dataclass(frozen=True)
class Contestant:
    """One row of the table: how long a batch takes, or why it was left out.

    Attributes:
        name: "torch" or a backend.
        milliseconds: the median; None if it cannot run.
        fidelity: relative RMS error against torch; 0 for torch.
        refused: why it cannot run; "" if it can.
    """

    name: str
    milliseconds: float | None = None
    fidelity: float | None = None
    refused: str = ""


@dataclass(frozen=True)
class Comparison:
    """What was measured, on what, and what came first: the content of the JSON file.

    Attributes:
        subject: everything that the choice depends on.
        fastest: name of the quickest contestant.
        contestants: the table.
    """

    subject: dict[str, Any]
    fastest: str
    contestants: list[Contestant]


def milliseconds(call: Callable[[Tensor], Tensor], pixels: Tensor) -> float:
    """Median wall time of a call until its result is there: what a GPU waits for on the host counts as well."""
    spent: list[float] = []
    for index in range(_WARM_UP + _MOST_CALLS):
        begin = time.perf_counter()
        call(pixels)
        if pixels.is_cuda:
            torch.cuda.synchronize(pixels.device)
        if index >= _WARM_UP:
            spent.append(1000 * (time.perf_counter() - begin))
        if sum(spent) > 1000 * _SECONDS:
            break
    return statistics.median(spent)


Timer = Callable[[Callable[[Tensor], Tensor], Tensor], float]


def use_fastest(source: EngineSource, say: Say, timer: Timer = milliseconds) -> None:
    """Gives the encoder its fastest engine, or none if PyTorch is faster than all of them.

    Engines of backends that are available here are built if they are not in the cache, and anew if they are damaged.
    Those whose error is above the bar of `build_engine` take no part.
    """
    source.encoder.engine = None
    subject = _subject(source)
    record = _record_path(source, subject)
    comparison = _remembered(record, subject)
    if comparison is None:
        say(f"engine: comparing what can run {source.name} here: {', '.join([TORCH, *available()])}")
        comparison = _compare(source, subject, say, timer)
        write_json(record, asdict(comparison))
    if comparison.fastest != TORCH:
        _use(source, comparison.fastest, say)
    say(f"engine: {source.name} runs on {comparison.fastest}, the fastest here ({record})")


def _compare(source: EngineSource, subject: dict[str, Any], say: Say, timer: Timer) -> Comparison:
    encoder, pixels = source.encoder, source.usual_example()
    contestants = [Contestant(TORCH, _time(encoder.encode, pixels, timer), 0.0)]
    try:
        for name in available():
            try:
                _use(source, name, say)
                took = _time(encoder.encode, pixels, timer)
            except (UserError, RuntimeError) as error:  # the latter out of the engine itself: no memory, for example
                contestants.append(Contestant(name, refused=first_line(error)))
                say(f"engine: {name} is left out: {first_line(error)}")
            else:
                assert encoder.engine is not None
                contestants.append(Contestant(name, took, encoder.engine.manifest.fidelity))
    finally:
        encoder.engine = None
    for contestant in contestants:
        if contestant.milliseconds is not None:
            say(f"engine: {source.name} {contestant.milliseconds:9.2f} ms for {len(pixels)} on {contestant.name}")
    runners = {entry.name: entry.milliseconds for entry in contestants if entry.milliseconds is not None}
    return Comparison(subject, min(runners, key=runners.__getitem__), contestants)


def _time(encode: Callable[[Tensor], Tensor], pixels: Tensor, timer: Timer) -> float:
    with torch.no_grad():
        return timer(encode, pixels)


def _use(source: EngineSource, backend: str, say: Say) -> None:
    path = cached_engine(source, backend, say)
    try:
        source.use(path)
    except UserError as error:
        say(f"engine: building it anew, since {error}")
        path.unlink(missing_ok=True)
        source.use(cached_engine(source, backend, say))


def _subject(source: EngineSource) -> dict[str, Any]:
    device = source.encoder.device
    return {
        "encoder": source.name,
        "weights": source.weights,
        "input": list(source.usual_example().shape),
        "dtype": str(source.encoder.dtype),
        "hardware": compute_capability(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "torch": torch.__version__,
        "backends": {name: BACKENDS[name].version() for name in available()},
    }


def _record_path(source: EngineSource, subject: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(subject, sort_keys=True).encode()).hexdigest()
    return engine_folder() / f"fastest-{source.name}-{digest[:12]}.json"


def _remembered(record: Path, subject: dict[str, Any]) -> Comparison | None:
    """None as well if the file is damaged: then it is measured again."""
    with contextlib.suppress(UserError, cattrs.BaseValidationError):
        comparison = cattrs.Converter(forbid_extra_keys=True).structure(read_json(record), Comparison)
        if comparison.subject == subject and comparison.fastest in (TORCH, *BACKENDS):
            return comparison
    return None
