"""How the methods compare: on each task, and over those tasks that all of them have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from genreward_fast.training.report import scores
from genreward_fast.training.report.pictures import EPISODE
from genreward_fast.training.report.runs import Run
from genreward_fast.training.report.scores import Cell, Curve, Estimate


@dataclass(frozen=True)
class TaskComparison:
    """The methods on one task, at the last step that all their runs have been evaluated at.

    Attributes:
        task: canonical name.
        step: that step; None if no run has been evaluated, and then all that follows is empty.
        groups: the evaluated runs of each method, by seed.
        cells: a figure a method.
        curves: {metric: {method: its training episodes}}.
        longer: the runs that went on after `step`, which is left out.
    """

    task: str
    step: int | None
    groups: dict[str, list[Run]]
    cells: list[Cell]
    curves: dict[str, dict[str, Curve]]
    longer: list[Run]


@dataclass(frozen=True)
class OverallComparison:
    """Over the tasks that define success and that every method has, with as many seeds as each has on all of them.

    Attributes:
        tasks: their names.
        seeds: how many, by method.
        means: interquartile mean of success, by method.
        improvements: (first, second) -> how probably the first beats the second.
    """

    tasks: list[str]
    seeds: dict[str, int]
    means: dict[str, Estimate]
    improvements: dict[tuple[str, str], Estimate]


def compare_on(task: str, methods: Mapping[str, Sequence[Run]]) -> TaskComparison:
    """The methods' runs on a task; runs that have not been evaluated yet play no part."""
    groups = {}
    for name, runs in methods.items():
        group = [run for run in runs if run.task == task and run.is_evaluated]
        if group:
            groups[name] = sorted(group, key=lambda run: run.seed)
    every = [run for group in groups.values() for run in group]
    if not every:
        return TaskComparison(task, None, {}, [], {}, [])
    ends = {run.folder.path: int(run.series("eval/return_mean")[0][-1]) for run in every}
    step = min(ends.values())
    curves = {}
    for metric in EPISODE:
        lines = {name: scores.training_curve(group, metric, step) for name, group in groups.items()}
        curves[metric] = {name: line for name, line in lines.items() if line is not None}
    return TaskComparison(
        task,
        step,
        groups,
        [scores.cell(task, name, group, step) for name, group in groups.items()],
        {metric: lines for metric, lines in curves.items() if lines},
        [run for run in every if ends[run.folder.path] > step],
    )


def compare_overall(comparisons: Sequence[TaskComparison]) -> OverallComparison | None:
    """None unless two methods share a task that defines success."""
    methods = list(dict.fromkeys(name for comparison in comparisons for name in comparison.groups))
    shared = [
        comparison
        for comparison in comparisons
        if len(comparison.groups) == len(methods) and all(cell.success is not None for cell in comparison.cells)
    ]
    if len(methods) < 2 or not shared:
        return None
    matrices = {}
    for name in methods:
        seeds = min(len(comparison.groups[name]) for comparison in shared)
        columns = [
            [scores.value_at(run, "eval/success", comparison.step) for run in comparison.groups[name][:seeds]]
            for comparison in shared
            if comparison.step is not None
        ]
        matrices[name] = np.array(columns).T
    return OverallComparison(
        tasks=[comparison.task for comparison in shared],
        seeds={name: len(matrix) for name, matrix in matrices.items()},
        means={name: scores.iqm_estimate(matrix) for name, matrix in matrices.items()},
        improvements={
            (first, second): scores.improvement_estimate(matrices[first], matrices[second])
            for second, first in combinations(methods, 2)
        },
    )
