"""Reading a profiler's trace: what ran when, on the host's threads and on the GPU's streams."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from genreward_fast.errors import UserError
from genreward_fast.files import read_json

_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


class Span(NamedTuple):
    """Milliseconds from the trace's start."""

    name: str
    start: float
    stop: float


class Timeline(NamedTuple):
    """
    Attributes:
        parts: the spans that the program named, by name.
        streams: the device's work by stream; empty without a GPU.
        length: milliseconds from the first part's start to the last one's end.
    """

    parts: dict[str, list[Span]]
    streams: dict[str, list[Span]]
    length: float

    @property
    def busy(self) -> float:
        """Share of the time in which the device does anything, over all its streams."""
        total, reached = 0.0, 0.0
        for span in sorted((s for spans in self.streams.values() for s in spans), key=lambda s: s.start):
            start, stop = max(span.start, reached), min(span.stop, self.length)
            total += max(0.0, stop - start)
            reached = max(reached, stop)
        return total / self.length


def read_timeline(path: Path, names: tuple[str, ...]) -> Timeline:
    """
    Args:
        path: a trace in Chrome's format, as `torch.profiler` writes it.
        names: of the parts that the program named.

    Raises:
        UserError: the file is missing, no trace, or has none of the parts.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("traceEvents"), list):
        raise UserError(f"{path}: not a profiler's trace; genreward bench --what train --trace FILE writes one")
    parts: dict[str, list[Span]] = defaultdict(list)
    streams: dict[str, list[Span]] = defaultdict(list)
    for event in content["traceEvents"]:
        kind = event.get("cat")
        if event.get("ph") != "X" or (kind not in _ON_DEVICE and kind != "user_annotation"):
            continue
        span = Span(event["name"], event["ts"] / 1e3, (event["ts"] + event["dur"]) / 1e3)
        if kind in _ON_DEVICE:
            streams[f"stream {_stream(event)}"].append(span)
        elif span.name in names:
            parts[span.name].append(span)
    if not parts:
        raise UserError(f"{path}: holds none of {', '.join(names)}; is it of another program?")
    begin = min(span.start for spans in parts.values() for span in spans)
    end = max(span.stop for spans in parts.values() for span in spans)
    return Timeline(_moved(parts, begin), _moved(streams, begin), end - begin)


def _stream(event: dict[str, Any]) -> Any:
    return event.get("args", {}).get("stream", event.get("tid"))


def _moved(lanes: dict[str, list[Span]], begin: float) -> dict[str, list[Span]]:
    return {name: [Span(s.name, s.start - begin, s.stop - begin) for s in spans] for name, spans in lanes.items()}
