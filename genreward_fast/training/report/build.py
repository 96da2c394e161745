"""`build_report`: from run folders to the folder of a report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genreward_fast.errors import UserError
from genreward_fast.training.report import pictures, scores
from genreward_fast.training.report.comparison import (
    OverallComparison,
    TaskComparison,
    compare_on,
    compare_overall,
)
from genreward_fast.training.report.goals import goals_of
from genreward_fast.training.report.methods import by_method
from genreward_fast.training.report.page import data_url, write_page
from genreward_fast.training.report.runs import Run, read_runs
from genreward_fast.training.report.scores import Cell
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
            rows.append((cell.task, cell.method, success, returns, str(cell.step), str(cell.returns.seeds)))
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
    comparisons = [compare_on(task, methods) for task in sorted({run.task for run in runs})]
    overall = compare_overall(comparisons)
    cells = [cell for comparison in comparisons for cell in comparison.cells]
    notes = _notes_of(runs) + [_left_out(comparison) for comparison in comparisons if comparison.longer]
    method_of = {run.folder.path: name for name, group in methods.items() for run in group}
    run_rows = [run_row(run, method_of[run.folder.path]) for run in runs]
    colors = {name: pictures.color_of(i) for i, name in enumerate(methods)}

    out.mkdir(parents=True, exist_ok=True)
    if overall:
        pictures.draw_overall(overall.means, overall.improvements, colors, out / "overall.png")
    write_csv(out / "runs.csv", [RUN_COLUMNS, *run_rows])
    write_csv(out / "results.csv", result_rows(cells))
    write_csv(out / "curves.csv", curve_rows({comparison.task: comparison.curves for comparison in comparisons}))
    write_page(
        out / PAGE,
        title=f"{_count(comparisons, 'task')}, {_count(methods, 'method')}",
        subtitle=f"{_count(runs, 'run')}: {', '.join(comparison.task for comparison in comparisons)}",
        notes=notes,
        results=page_table(cells, list(methods)),
        compared={comparison.task: comparison.step for comparison in comparisons if comparison.cells},
        overall=data_url(out / "overall.png") if overall else None,
        overall_text=_over_what(overall) if overall else "",
        tasks=[_section(comparison, runs, colors, out) for comparison in comparisons],
        run_columns=RUN_COLUMNS,
        runs=run_rows,
        repetitions=scores.REPETITIONS,
    )
    return Report(out / PAGE, cells, notes)


def _notes_of(runs: list[Run]) -> list[str]:
    """What must be known about the runs, each note once with the runs that it is about."""
    about: dict[str, list[str]] = {}
    for run in runs:
        own = list(dict.fromkeys(run.notes))
        if not run.is_evaluated:
            own.append(f"not evaluated yet (step {run.last_step} of {run.settings['train.steps']}): not in the figures")
        elif run.summary is None:
            own.append(f"not finished: at step {run.last_step} of {run.settings['train.steps']}")
        for note in own:
            about.setdefault(note, []).append(run.name)
    return [f"{note} ({'all runs' if len(names) == len(runs) > 1 else _names(names)})" for note, names in about.items()]


def _left_out(comparison: TaskComparison) -> str:
    names = _names([run.name for run in comparison.longer])
    return f"{comparison.task} is compared at step {comparison.step}; these runs went on, which is left out: {names}"


def _over_what(overall: OverallComparison) -> str:
    seeds = ", ".join(f"{method}: {count}" for method, count in overall.seeds.items())
    return f"Over {', '.join(overall.tasks)}; seeds a task: {seeds}."


def _section(comparison: TaskComparison, runs: list[Run], colors: dict[str, str], out: Path) -> dict[str, Any]:
    """A task's part of the page; draws its pictures."""
    task, shown = comparison.task, []
    if comparison.curves:
        path = out / f"curves-{task}.png"
        pictures.draw_curves(comparison.curves, colors, path, f"{task}: training episodes")
        shown.append({"data": data_url(path), "text": f"Learning curves of {task}"})
    path = out / f"rewards-{task}.png"
    if pictures.draw_rewards(comparison.groups, path, f"{task}: mean reward a step, by its parts"):
        shown.append({"data": data_url(path), "text": f"Parts of the reward on {task}"})
    return {"name": task, "pictures": shown, "goals": goals_of([run for run in runs if run.task == task])}


def _names(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _count(things: Any, name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"
