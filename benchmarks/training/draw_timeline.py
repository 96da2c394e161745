"""Draws a trace of `genreward bench --what train --trace TRACE.json`: named parts on the host, and the GPU's streams.

usage: python benchmarks/training/draw_timeline.py TRACE.json --out timeline.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from genreward_fast.bench.timeline import read_timeline
from genreward_fast.bench.training_run import PARTS
from genreward_fast.errors import UserError
from genreward_fast.files import atomic_path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path, help="the profiler's trace")
    parser.add_argument("--out", type=Path, required=True, help="the PNG to write")
    options = parser.parse_args()
    try:
        if options.out.suffix != ".png":
            raise UserError(f"{options.out}: the name of the picture must end in .png")
        timeline = read_timeline(options.trace, PARTS)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    lanes = [(name, timeline.parts[name], "tab:blue") for name in PARTS if name in timeline.parts]
    lanes += [(name, spans, "tab:orange") for name, spans in sorted(timeline.streams.items())]
    figure, axes = plt.subplots(figsize=(14, 1 + 0.4 * len(lanes)), layout="constrained")
    for height, (_, spans, colour) in enumerate(lanes):
        axes.broken_barh([(span.start, span.stop - span.start) for span in spans], (height - 0.4, 0.8), color=colour)
    axes.set_yticks(range(len(lanes)), [name for name, *_ in lanes])
    axes.invert_yaxis()
    axes.set_xlim(0, timeline.length)
    axes.set_xlabel("milliseconds")
    if timeline.streams:
        axes.set_title(f"the GPU is busy for {timeline.busy:.0%} of {timeline.length:.0f} ms")
    with atomic_path(options.out) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
