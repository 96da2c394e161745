"""The tables of a report: for the page, for the terminal, and as CSV files."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from genreward_fast.files import atomic_path
from genreward_fast.training.logger import duration
from genreward_fast.training.report.runs import Run
from genreward_fast.training.report.scores import Cell, Curve, Estimate

RUN_COLUMNS = ("run", "task", "method", "seed", "steps", "success", "return", "wall time", "steps/s", "device", "state")


def page_table(cells: list[Cell], methods: list[str]) -> list[dict[str, Any]]:
    """A row a method that has been evaluated, with a cell a task; a method without runs on a task has None there."""
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    by_place = {(cell.task, cell.method): cell for cell in cells}
    best = {task: max(_score(cell) for cell in cells if cell.task == task) for task in tasks}
    rivals = {task: sum(cell.task == task for cell in cells) > 1 for task in tasks}

    def shown(cell: Cell | None) -> dict[str, Any] | None:
        return (
            None
            if cell is None
            else {
                "success": percent(cell.success.value) if cell.success else None,
                "success_interval": _interval(cell.success, percent) or "one seed",
                "returns": plain(cell.returns.value),
                "returns_interval": _interval(cell.returns, plain),
                "best": rivals[cell.task] and _score(cell) == best[cell.task],
            }
        )

    rows = [{"method": m, "cells": [shown(by_place.get((task, m))) for task in tasks]} for m in methods]
    return [row for row in rows if any(row["cells"])]


def run_row(run: Run, method: str) -> tuple[str, ...]:
    success, returns, seconds = run.last("eval/success"), run.last("eval/return_mean"), run.last("time/seconds")
    summary = run.summary or {}
    seconds = summary.get("seconds", seconds)
    speed = run.last_step / seconds if seconds else None
    return (
        str(run.folder.path),
        run.task,
        method,
        str(run.seed),
        str(run.last_step),
        "" if success is None else percent(success),
        "" if returns is None else plain(returns),
        "" if seconds is None else duration(seconds),
        "" if speed is None else f"{speed:.1f}",
        summary.get("device", ""),
        "finished" if run.summary else f"at {100 * run.last_step / run.settings['train.steps']:.0f}%",
    )


def result_rows(cells: list[Cell]) -> list[Sequence[Any]]:
    figures = [f"{name}{suffix}" for name in ("success", "return") for suffix in ("", "_low", "_high")]
    rows: list[Sequence[Any]] = [["task", "method", "step", "seeds", *figures]]
    for cell in cells:
        values: list[float | None] = []
        for estimate in (cell.success, cell.returns):
            values += [estimate.value, estimate.low, estimate.high] if estimate else [None] * 3
        rows.append([cell.task, cell.method, cell.step, cell.returns.seeds, *values])
    return rows


def curve_rows(curves: dict[str, dict[str, dict[str, Curve]]]) -> list[Sequence[Any]]:
    rows: list[Sequence[Any]] = [["task", "metric", "method", "step", "mean", "low", "high"]]
    for task, metrics in curves.items():
        for metric, lines in metrics.items():
            for method, curve in lines.items():
                for i, step in enumerate(curve.steps):
                    low, high = (None if side is None else side[i] for side in (curve.low, curve.high))
                    rows.append([task, metric, method, round(step), curve.mean[i], low, high])
    return rows


def write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def percent(value: float) -> str:
    return f"{100 * value:.0f}%"


def plain(value: float) -> str:
    return f"{value:.1f}"


def _score(cell: Cell) -> float:
    """What methods are ranked by on a task: success, or return where success is not defined."""
    return (cell.success or cell.returns).value


def _interval(estimate: Estimate | None, text: Callable[[float], str]) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    return f"[{text(estimate.low)}, {text(estimate.high)}]"


def with_interval(estimate: Estimate | None, text: Callable[[float], str]) -> str:
    """The figure as it is printed; "–" where there is none."""
    if estimate is None:
        return "–"
    return f"{text(estimate.value)} {_interval(estimate, text)}".rstrip()
