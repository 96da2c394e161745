"""The pictures of a report, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from genreward_fast.files import atomic_path
from genreward_fast.training.curves import INK, style
from genreward_fast.training.report.runs import Run
from genreward_fast.training.report.scores import Curve, Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart, without the yellow.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5c5c5c")
PARTS = {"env/dense_reward": ("environment's dense reward", "#5c5c5c")}
EPISODE = {"episode/success": "success rate", "episode/return": "return (the task's dense reward)"}


def color_of(index: int) -> str:
    return COLORS[index % len(COLORS)]


def draw_curves(curves: Mapping[str, Mapping[str, Curve]], colors: Mapping[str, str], path: Path, title: str) -> None:
    """Learning curves of one task: {metric: {method: Curve}}, a panel a metric."""
    figure, panels = _figure(1, len(curves), title)
    for axis, (metric, lines) in zip(panels, curves.items()):
        for method, curve in lines.items():
            axis.plot(curve.steps, curve.mean, color=colors[method], linewidth=1.6, label=method)
            if curve.low is not None and curve.high is not None:
                axis.fill_between(curve.steps, curve.low, curve.high, color=colors[method], alpha=0.18, linewidth=0)
        if metric == "episode/success":
            axis.set_ylim(-0.03, 1.03)
        style(axis, EPISODE[metric])
    _save(figure, path)


def draw_overall(
    overall: Mapping[str, Estimate],
    improvements: Mapping[tuple[str, str], Estimate],
    colors: Mapping[str, str],
    path: Path,
) -> None:
    """Interquartile means of success, and probabilities of improvement of one method over another."""
    rows = max(len(overall), len(improvements))
    figure, (left, right) = _figure(1, 2, "", height=0.9 + 0.42 * rows)
    _draw_estimates(left, overall, [colors[method] for method in overall])
    style(left, "success rate, interquartile mean over tasks and seeds", "", "")
    pairs = {f"{first}\nover {second}": estimate for (first, second), estimate in improvements.items()}
    _draw_estimates(right, pairs, [colors[first] for first, _ in improvements])
    right.axvline(0.5, color=INK, linewidth=0.8, linestyle=":")
    style(right, "probability of improvement in success", "", "")
    _save(figure, path)


def draw_rewards(runs: Mapping[str, list[Run]], path: Path, title: str) -> bool:
    """What the reward of one task is made of, as means over the steps: a panel a method. False if none was logged."""
    drawn = {}
    for method, group in runs.items():
        names = {name for run in group for record in run.records for name in record if name.startswith("reward/")}
        counted = [*sorted(name for name in names if not name.endswith("_raw")), *PARTS]
        lines = {name: line for name in counted if (line := _mean_line(group, name)) is not None}
        if lines:
            drawn[method] = lines
    if not drawn:
        return False
    figure, panels = _figure(-(-len(drawn) // 3), min(len(drawn), 3), title, height=2.6 * -(-len(drawn) // 3))
    for axis, (method, lines) in zip(panels, drawn.items()):
        generated = 0
        for name, (steps, values) in lines.items():
            label, color = PARTS.get(name, (name.removeprefix("reward/"), color_of(generated)))
            generated += name not in PARTS
            axis.plot(steps, values, ".-", color=color, linewidth=1.2, markersize=3, label=label)
        style(axis, method)
    for axis in panels[len(drawn) :]:
        axis.set_visible(False)
    _save(figure, path)
    return True


def _mean_line(runs: list[Run], name: str, points: int = 60) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean over the runs that have the metric, between the steps that all of these have."""
    series = [pair for run in runs if len((pair := run.series(name))[0])]
    if not series:
        return None
    start, end = max(steps[0] for steps, _ in series), min(steps[-1] for steps, _ in series)
    if end < start:
        return None
    grid = np.linspace(start, end, points if end > start else 1)
    return grid, np.mean([np.interp(grid, steps, values) for steps, values in series], axis=0)


def _draw_estimates(axis: Axes, estimates: Mapping[str, Estimate], colors: list[str]) -> None:
    for row, (estimate, color) in enumerate(zip(estimates.values(), colors)):
        if estimate.low is not None and estimate.high is not None:
            axis.barh(row, estimate.high - estimate.low, left=estimate.low, height=0.55, color=color, alpha=0.35)
        axis.plot([estimate.value] * 2, [row - 0.28, row + 0.28], color=color, linewidth=2.2)
    axis.set_yticks(range(len(estimates)), list(estimates), fontsize=8)
    axis.set_ylim(len(estimates) - 0.4, -0.6)
    axis.set_xlim(-0.02, 1.02)


def _figure(rows: int, columns: int, title: str, height: float | None = None) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, height or 3.1 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flatten())


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
