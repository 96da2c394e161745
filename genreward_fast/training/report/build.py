"""`build_report`: from run folders to the folder of a report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from genreward_fast.errors import UserError
from genreward_fast.training.report import pictures, scores
from genreward_fast.training.report.goals import goals_of
from genreward_fast.training.report.methods import by_method
from genreward_fast.training.report.page import data_url, write_page
from genreward_fast.training.report.runs import Run, read_runs
from genreward_fast.training.report.scores import Cell, Curve, Estimate
from genreward_fast.training.report.tables import (
    RUN_COLUMNS,
    curve_rows,
    page_table,
    percent,
    plain,
    result_rows,
    run_row,
    with_interval,
    write_csv,
)

PAGE = "report.html"


@dataclass(frozen=True)
class Report:
    """Where the report is, and what it says in short."""

    page: Path
    cells: list[Cell]
    notes: list[str]

    def lines(self) -> list[str]:
        """The table of results as it is printed."""
        rows = [("task", "method", "success", "return", "at step", "seeds")]
        for cell in self.cells:
            success, returns = (with_interval(e, text) for e, text in ((cell.success, percent), (cell.returns, plain)))
            rows.append((cell.task, cell.method, success, returns, str(cell.step), str(cell.success.seeds)))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        table = ["  ".join(entry.ljust(width) for entry, width in zip(row, widths)).rstrip() for row in rows]
        return [*table, *(f"note: {note}" for note in self.notes)]


def build_report(folders: Iterable[Path], out: Path) -> Report:
    """Reads runs and writes report.html, its pictures, and results.csv, curves.csv and runs.csv to `out`.

    On a task, methods are compared at the last step that all their runs have been evaluated at; what runs did after it
    is left out, and the report says so. A run that has not been evaluated yet is listed, and left out of the figures.

    Raises:
        UserError: rliable is missing, a folder holds no run, the same run is given twice, or `out` is a file.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder with --out")
    scores.require_rliable()
    runs = read_runs(folders)
    methods = by_method(runs)
    method_of = {run.folder.path: name for name, group in methods.items() for run in group}
    colors = {name: pictures.color_of(i) for i, name in enumerate(methods)}
    tasks = sorted({run.task for run in runs})
    out.mkdir(parents=True, exist_ok=True)

    cells: list[Cell] = []
    curves: dict[str, dict[str, dict[str, Curve]]] = {}
    notes = _notes_of(runs)
    evaluated: dict[str, dict[str, list[Run]]] = {}
    for task in tasks:
        groups = {name: [run for run in group if run.task == task] for name, group in methods.items()}
        groups = {name: [run for run in group if _is_evaluated(run)] for name, group in groups.items()}
        evaluated[task] = {name: sorted(group, key=lambda run: run.seed) for name, group in groups.items() if group}
        every = [run for group in evaluated[task].values() for run in group]
        step = scores.common_step(every)
        if not every or step is None:
            continue
        notes += _alignment_notes(task, every, step)
        cells += [scores.cell(task, name, group, step) for name, group in evaluated[task].items()]
        curves[task] = {
            metric: {
                name: curve
                for name, group in evaluated[task].items()
                if (curve := scores.training_curve(group, metric, step)) is not None
            }
            for metric in pictures.EPISODE
        }
    overall, improvements, overall_text = _overall(cells, evaluated)
    if overall:
        pictures.draw_overall(overall, improvements, colors, out / "overall.png")
    sections = [_section(task, curves.get(task, {}), evaluated[task], runs, colors, out) for task in tasks]
    run_rows = [run_row(run, method_of[run.folder.path]) for run in runs]
    write_csv(out / "runs.csv", [RUN_COLUMNS, *run_rows])
    write_csv(out / "results.csv", result_rows(cells))
    write_csv(out / "curves.csv", curve_rows(curves))
    write_page(
        out / PAGE,
        title=f"{_count(tasks, 'task')}, {_count(methods, 'method')}",
        subtitle=f"{_count(runs, 'run')}: {', '.join(tasks)}",
        notes=notes,
        results=page_table(cells, list(methods)),
        compared={cell.task: cell.step for cell in cells},
        overall=data_url(out / "overall.png") if overall else None,
        overall_text=overall_text,
        tasks=sections,
        run_columns=RUN_COLUMNS,
        runs=run_rows,
        repetitions=scores.REPETITIONS,
    )
    return Report(out / PAGE, cells, notes)


def _is_evaluated(run: Run) -> bool:
    return len(run.series("eval/success")[0]) > 0


def _notes_of(runs: list[Run]) -> list[str]:
    """What must be known about the runs, each note once with the runs that it is about."""
    about: dict[str, list[str]] = {}
    for run in runs:
        own = list(dict.fromkeys(run.notes))
        if not _is_evaluated(run):
            own.append(f"not evaluated yet (step {run.last_step} of {run.settings['train.steps']}): not in the figures")
        elif run.summary is None:
            own.append(f"not finished: at step {run.last_step} of {run.settings['train.steps']}")
        for note in own:
            about.setdefault(note, []).append(run.name)
    return [f"{note} ({'all runs' if len(names) == len(runs) > 1 else _names(names)})" for note, names in about.items()]


def _alignment_notes(task: str, runs: list[Run], step: int) -> list[str]:
    longer = [run.name for run in runs if run.series("eval/success")[0][-1] > step]
    if not longer:
        return []
    return [f"{task} is compared at step {step}; these runs went on, which is left out: {_names(longer)}"]


def _overall(
    cells: list[Cell], evaluated: dict[str, dict[str, list[Run]]]
) -> tuple[dict[str, Estimate], dict[tuple[str, str], Estimate], str]:
    """Over the tasks that every method has, with as many seeds as each method has on each of them."""
    methods = list(dict.fromkeys(cell.method for cell in cells))
    steps = {cell.task: cell.step for cell in cells}
    tasks = [task for task in steps if all(method in evaluated[task] for method in methods)]
    if len(methods) < 2 or not tasks:
        return {}, {}, ""
    matrices = {}
    for method in methods:
        seeds = min(len(evaluated[task][method]) for task in tasks)
        rows = [
            [scores.value_at(run, "eval/success", steps[task]) for run in evaluated[task][method][:seeds]]
            for task in tasks
        ]
        matrices[method] = np.array(rows).T
    overall = {method: scores.iqm_estimate(matrix) for method, matrix in matrices.items()}
    improvements = {
        (first, second): scores.improvement_estimate(matrices[first], matrices[second])
        for second, first in combinations(methods, 2)
    }
    seeds_text = ", ".join(f"{method}: {len(matrix)}" for method, matrix in matrices.items())
    return overall, improvements, f"Over {', '.join(tasks)}; seeds a task: {seeds_text}."


def _section(
    task: str,
    curves: dict[str, dict[str, Curve]],
    groups: dict[str, list[Run]],
    runs: list[Run],
    colors: dict[str, str],
    out: Path,
) -> dict[str, Any]:
    """A task's part of the page; draws its pictures."""
    shown = []
    drawn = {metric: lines for metric, lines in curves.items() if lines}
    if drawn:
        path = out / f"curves-{task}.png"
        pictures.draw_curves(drawn, colors, path, f"{task}: training episodes")
        shown.append({"data": data_url(path), "text": f"Learning curves of {task}"})
    path = out / f"rewards-{task}.png"
    if pictures.draw_rewards(groups, path, f"{task}: mean reward a step, by its parts"):
        shown.append({"data": data_url(path), "text": f"Parts of the reward on {task}"})
    return {"name": task, "pictures": shown, "goals": goals_of([run for run in runs if run.task == task])}


def _names(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _count(things: Any, name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"
