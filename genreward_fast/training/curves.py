"""The picture of a run's learning curves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from genreward_fast.files import atomic_path
from genreward_fast.training.logger import read_metrics

if TYPE_CHECKING:  # slow to import
    from matplotlib.axes import Axes

INK, GRID = "#24292f", "#d8dee4"
BLUE, ORANGE, GREEN, RED, PURPLE = "#2a6fbb", "#d9822b", "#2f9e60", "#c23b3b", "#7a4fbf"
LOSSES = {
    "loss/image": (BLUE, "image"),
    "loss/reward": (ORANGE, "reward"),
    "loss/dyn": (GREEN, "dynamics KL"),
    "loss/value": (PURPLE, "value"),
    "fb/loss": (RED, "FB"),
}


def draw_curves(folder: Path, path: Path, title: str) -> None:
    """Draws return, success, generated reward and losses of the run in `folder` over environment steps, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = read_metrics(folder)

    def series(name: str) -> tuple[np.ndarray, np.ndarray]:
        points = [(record["step"], record[name]) for record in records if name in record]
        return np.array([p[0] for p in points], float), np.array([p[1] for p in points], float)

    figure = Figure(figsize=(11, 6.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    axes = figure.subplots(2, 2).flatten()

    steps, returns = series("episode/return")
    if len(steps):
        axes[0].plot(steps, returns, ".", color=BLUE, alpha=0.35, markersize=4, label="training episodes")
        axes[0].plot(*last_of_each(steps, smooth(returns)), color=BLUE, linewidth=1.4, label="mean of the last 20")
    eval_steps, means = series("eval/return_mean")
    if len(eval_steps):
        deviations = series("eval/return_std")[1]
        axes[0].errorbar(
            eval_steps, means, deviations, fmt="o-", color=ORANGE, capsize=3, markersize=4, label="evaluation ± std"
        )
    style(axes[0], "episode return (the task's dense reward)")

    steps, successes = series("episode/success")
    if len(steps):
        axes[1].plot(
            *last_of_each(steps, smooth(successes)), color=BLUE, linewidth=1.4, label="training, mean of the last 20"
        )
    rate_steps, rate = series("eval/success")
    if len(rate_steps):
        low, high = (series(f"eval/{name}")[1] for name in ("success_low", "success_high"))
        spread = np.stack([np.maximum(rate - low, 0), np.maximum(high - rate, 0)])
        axes[1].errorbar(
            rate_steps, rate, spread, fmt="o-", color=ORANGE, capsize=3, markersize=4, label="evaluation, 95% interval"
        )
    axes[1].set_ylim(-0.03, 1.03)
    undefined = len(eval_steps) > len(rate_steps)
    style(axes[1], "success rate", empty="not defined for this task" if undefined else "none yet")

    names = sorted({name for record in records for name in record if name.startswith("reward/")})
    for name, color in zip([n for n in names if n.endswith("_raw")], (GREEN, PURPLE, RED, ORANGE)):
        steps, values = series(name)
        label = name.removeprefix("reward/").removesuffix("_raw")
        axes[2].plot(
            steps, values, ".-", color=color, linewidth=1.2, markersize=3, label=f"{label} (before its weight)"
        )
    style(axes[2], "generated reward, mean over a window's rows")

    for name, (color, label) in LOSSES.items():
        steps, values = series(name)
        if len(steps):
            axes[3].plot(steps, values, color=color, linewidth=1.2, label=label)
            axes[3].set_yscale("symlog", linthresh=1)  # FB's loss may be negative
    style(axes[3], "losses")

    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def style(axis: Axes, title: str, x_label: str = "environment steps", empty: str = "none yet") -> None:
    """Title, grid and legend of a panel whose lines are drawn; `empty` stands in one without labels."""
    axis.set_title(title, fontsize=10, color=INK, loc="left")
    axis.grid(color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8, colors=INK)
    axis.set_xlabel(x_label, fontsize=8, color=INK)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8, frameon=False)
    else:
        axis.text(0.5, 0.5, empty, transform=axis.transAxes, ha="center", color="#8b949e")


def smooth(values: np.ndarray, window: int = 20) -> np.ndarray:
    """Mean of the last `window` values at each point (of all there are, at the start)."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (total[ends] - total[starts]) / (ends - starts)


def last_of_each(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One point a step, the last: episodes of parallel environments end together."""
    keep = np.append(steps[1:] != steps[:-1], True)[: len(steps)]
    return steps[keep], values[keep]
