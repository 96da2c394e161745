"""Keeps what the runs of sweeps have shown so far: a small JSON file and a picture, without checkpoints and replays.

    python benchmarks/training/evidence.py sweeps/grid_a-reach-0 --name grid_a-reach-0 --here

Reads run folders, finished or not and even while they are being written, and writes NAME.json and NAME.png into
benchmarks/results/learning/. A file that an earlier call has written may stand among the folders: its trials are taken
over, so a grid may be trained in parts on machines that keep nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from genreward_fast.bench.timing import code_version
from genreward_fast.errors import UserError
from genreward_fast.files import atomic_path, read_json, write_json
from genreward_fast.training.device import describe_device, resolve_device
from genreward_fast.training.report.methods import by_method
from genreward_fast.training.report.runs import Run, read_runs
from genreward_fast.training.sweep.folder import SweepFolder
from genreward_fast.training.sweep.state import SweepState

RESULTS = Path(__file__).resolve().parent.parent / "results" / "learning"
POINTS = 60
"""Evaluations that are kept of a run, at most."""
FINAL = ("episodes", "success", "success_low", "success_high", "return_mean", "return_std")


def collect(sources: Sequence[Path], device: str | None = None) -> dict[str, Any]:
    """What is written to the JSON file.

    Args:
        sources: folders of sweeps or runs, and JSON files of earlier calls.
        device: what runs that have not ended are on, if it is known; the others say it themselves.

    Raises:
        UserError: a source is missing or damaged, or two of them hold the same trial.
    """
    folders = [source for source in sources if source.suffix != ".json"]
    sweeps = [SweepFolder(folder) for folder in folders if SweepFolder(folder).state.exists()]
    states = {folder: SweepState.load(folder) for folder in sweeps}
    trials, grids, waiting = [], [], []
    for source in sources:
        if source.suffix == ".json":
            earlier = read_json(source)
            if not isinstance(earlier, dict) or not {"trials", "grids", "not started"} <= earlier.keys():
                raise UserError(f"{source}: not a file of this script; name a sweep's folder, or NAME.json of before")
            trials += earlier["trials"]
            grids += [grid for grid in earlier["grids"] if grid not in grids]
            waiting += earlier["not started"]
    runs = read_runs(folders) if folders else []
    known = {run.folder.path.resolve(): run for run in runs}
    records = {}
    for folder, state in states.items():
        grid = asdict(state.grid)
        grid["goals"] = grid["goals"] and Path(grid["goals"]).name  # where it lies is this machine's own
        grids += [grid] if grid not in grids else []
        for name, record in state.trials.items():
            path = folder.run(name).path.resolve()
            records[path] = record
            if path not in known:
                waiting.append(name)
    for cell, its in by_method(runs).items():
        for run in its:
            record = records.get(run.folder.path.resolve())
            state = record.state if record is not None else "finished" if run.summary else "unfinished"
            fared = {"attempts": record.attempts, "reason": record.reason} if record is not None else {}
            trials.append(trial_of(run, cell, device) | {"state": state} | fared)
    seen = set()
    for trial in trials:
        key = (trial["task"], trial["cell"], trial["seed"])
        if key in seen:
            raise UserError(f"{key[0]}, {key[1]}, seed {key[2]}: twice among the sources; leave one of them out")
        seen.add(key)
    return {"grids": grids, "not started": waiting, "trials": trials}


def trial_of(run: Run, cell: str, device: str | None) -> dict[str, Any]:
    """One run, as far as it has come: its curve is of evaluations, its final evaluation the last of them."""
    seconds = run.summary["seconds"] if run.summary else run.last("time/seconds")
    goal = read_json(run.folder.goal / "goal.json") if (run.folder.goal / "goal.json").exists() else {}
    evaluations = [record for record in run.records if "eval/return_mean" in record]
    final = {name: evaluations[-1].get(f"eval/{name}") for name in FINAL} if evaluations else {}
    return {
        "task": run.task,
        "cell": cell,
        "seed": run.seed,
        "preset": run.settings.get("preset"),
        "size": run.settings.get("agent.size"),
        "steps": run.last_step,
        "steps asked": run.settings["train.steps"],
        "updates": run.last("time/updates"),
        "seconds": seconds,
        "steps/s": run.last_step / seconds if seconds else None,
        "device": run.summary["device"] if run.summary else device,
        "notes": run.notes,
        "goal": goal.get("provenance"),
        "curve": [
            {"step": e["step"], "success": e.get("eval/success"), "return": e["eval/return_mean"]}
            for e in thinned(evaluations)
        ],
        "final": {"step": evaluations[-1]["step"]} | final if evaluations else None,
    }


def thinned(entries: list[Any]) -> list[Any]:
    """At most `POINTS` of them, evenly spread, the first and the last among them."""
    if len(entries) <= POINTS:
        return entries
    return [entries[index] for index in np.linspace(0, len(entries) - 1, POINTS).round().astype(int)]


def mean_curve(curves: list[list[dict[str, Any]]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps up to which all the curves go, and the mean of the curves there, linear between evaluations."""
    given = [[(point["step"], point[name]) for point in curve if point[name] is not None] for curve in curves]
    given = [points for points in given if points]
    if not given:
        return np.empty(0), np.empty(0)
    first, last = max(points[0][0] for points in given), min(points[-1][0] for points in given)
    steps = np.array(sorted({step for points in given for step, _ in points if first <= step <= last}), float)
    values = [np.interp(steps, *np.array(points, float).T) for points in given]
    return steps, np.mean(values, axis=0)


def draw(result: dict[str, Any], path: Path) -> None:
    """Success over steps: a panel for each task, a colour for each cell, thin lines for seeds and a thick one for
    their mean. A task that does not define success shows its return."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    trials = result["trials"]
    tasks, cells = (list(dict.fromkeys(trial[name] for trial in trials)) for name in ("task", "cell"))
    columns = min(len(tasks), 3)
    rows, legend_rows = -(-len(tasks) // columns), -(-len(cells) // 3)
    height = 3.2 * rows + 0.25 * legend_rows + 0.3
    figure = Figure(figsize=(max(4.4 * columns, 7), height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    handles: dict[str, Any] = {}
    for axis, task in zip(axes, tasks):
        here = [trial for trial in trials if trial["task"] == task]
        name = "success" if any(p["success"] is not None for trial in here for p in trial["curve"]) else "return"
        for number, cell in enumerate(cells):
            curves = [trial["curve"] for trial in here if trial["cell"] == cell]
            color = colormaps["tab10" if len(cells) <= 10 else "tab20"](number)
            for curve in curves if len(curves) > 1 else []:
                points = [(point["step"], point[name]) for point in curve if point[name] is not None]
                axis.plot(*zip(*points) if points else ([], []), color=color, linewidth=0.6, alpha=0.5)
            steps, values = mean_curve(curves, name)
            (line,) = axis.plot(steps, values, color=color, linewidth=2, marker="o", markersize=3, label=cell)
            if curves:
                handles.setdefault(cell, line)
        axis.set_title(f"{task}: {name}" + (" rate" if name == "success" else ""), loc="left", fontsize=10)
        if name == "success":
            axis.set_ylim(-0.03, 1.03)
        axis.set_xlim(left=0)
        axis.set_xlabel("environment steps", fontsize=8)
        axis.grid(color="#d8dee4", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    for axis in axes[len(tasks) :]:
        axis.set_visible(False)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sources", nargs="+", type=Path, help="folders of sweeps or runs, NAME.json of earlier calls")
    parser.add_argument("--name", required=True, help="of the files that are written")
    parser.add_argument("--here", action="store_true", help="runs that have not ended are on this machine's device")
    parser.add_argument(
        "--commit", default=code_version(Path(__file__).parent), help="whose code it is  [default: this checkout's]"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON and the PNG")
    options = parser.parse_args(arguments)
    try:
        device = describe_device(resolve_device("auto")) if options.here else None
        found = collect(options.sources, device)
    except UserError as error:
        print(f"evidence: {error}", file=sys.stderr)
        return 2
    result = {"name": options.name, "commit": options.commit, "when": time.strftime("%Y-%m-%d", time.gmtime())} | found
    options.results.mkdir(parents=True, exist_ok=True)
    target = options.results / f"{options.name}.json"
    write_json(target, result)
    draw(result, target.with_suffix(".png"))
    done = sum(trial["state"] == "finished" for trial in result["trials"])
    print(f"{done} of {len(result['trials']) + len(result['not started'])} trials are finished; they are in {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
