"""The video encoder, from diffusers' module to ours: what each change takes off the time, and how exact it is.

python benchmarks/encoders/waterfall_vae.py --json benchmarks/results/waterfall_vae.json --picture waterfall_vae.png
python benchmarks/encoders/waterfall_vae.py --draw benchmarks/results/waterfall_vae.json --picture waterfall_vae.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from genreward_fast.errors import UserError
from genreward_fast.files import atomic_path, read_json, write_json


def measured(device: str, preset: str, seconds: float, frames: int, pixels: int) -> dict[str, Any]:
    """All steps' numbers."""
    from genreward_fast.bench.encoder_vae_steps import steps_work
    from genreward_fast.bench.encoder_work import Request
    from genreward_fast.bench.encoders import begin, timed
    from genreward_fast.training.device import resolve_device

    if frames < 8 or frames % 8:
        raise UserError(f"--frames {frames}: must be a multiple of 8")
    if pixels < 8 or pixels % 8:
        raise UserError(f"--pixels {pixels}: must be a multiple of 8")
    request = Request(str(resolve_device(device)), preset, seconds, compiled=False)
    work = steps_work(request, 1, frames, pixels)
    record, limits = begin("the video encoder, step by step", request)
    record["results"] = list(timed(work, request, limits))
    return record


def draw(record: dict[str, Any], path: Path) -> None:
    """A bar for each step that was timed, from its time to that of the step before; the errors beside them.

    Raises:
        UserError: there is no such step.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [result for result in record["results"] if "error" not in result]
    if not steps:
        raise UserError("nothing to draw: no step was timed")
    figure = Figure(figsize=(10, 1.2 + 0.46 * len(steps)), dpi=130)
    FigureCanvasAgg(figure)
    height = figure.get_figheight()
    axis = figure.add_axes((0.27, 0.6 / height, 0.56, 1 - 1.25 / height))
    times = [step["ms"] for step in steps]
    for place, (step, before) in enumerate(zip(steps, [0.0, *times])):
        ms = step["ms"]
        axis.barh(place, ms, color="#8b949e" if place == 0 else "#2a6fbb", height=0.62)
        if before > ms:
            axis.barh(place, before - ms, left=ms, color="#d5e3f2", height=0.62)
        axis.plot([step["p10 ms"], step["p90 ms"]], [place, place], color="#24292f", linewidth=1)
        share = f"{ms:.3g} ms, {step['% of limit']:.0f}% of the limit"
        axis.text(max(ms, before, step["p90 ms"]) + 0.01 * max(times), place, share, va="center", fontsize=8)
        error = f"{step['relative error']:.1e}" if step["relative error"] else "0"
        axis.text(1.16, place, error, transform=axis.get_yaxis_transform(), va="center", ha="right", fontsize=8)
    limit = steps[0]["limit ms"]
    axis.axvline(limit, color="#2f9e60", linewidth=1, linestyle="--")
    axis.text(limit, 1.01, f"limit {limit:.3g} ms", transform=axis.get_xaxis_transform(), fontsize=8, va="bottom")
    axis.text(1.16, 1.01, "relative\nerror", transform=axis.transAxes, fontsize=8, va="bottom", ha="right")
    axis.set_xlim(0, 1.45 * max(times))
    axis.set_yticks(range(len(steps)), [step["name"] for step in steps], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel(f"milliseconds a call; {title(record)}", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(axis="x", labelsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def title(record: dict[str, Any]) -> str:
    shape = record["results"][0]["shape"]
    return f"{shape}, {record['dtype']}, {record['weights']}, {record['limits']['device']}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--preset", choices=("paper", "tiny"), default="paper", help="whose architecture")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--pixels", type=int, default=480)
    parser.add_argument("--seconds", type=float, default=3.0, help="of measuring, per step")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--draw", type=Path, help="measure nothing; draw this file")
    parser.add_argument("--picture", type=Path, help="a PNG")
    options = parser.parse_args(arguments)
    try:
        if options.draw is not None:
            record = read_json(options.draw)
        else:
            record = measured(options.device, options.preset, options.seconds, options.frames, options.pixels)
            if options.json is not None:
                write_json(options.json, record)
        if options.picture is not None:
            draw(record, options.picture)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
