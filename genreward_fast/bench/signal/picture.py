"""The picture of the table: for each reward a bar of each mean AUC, and a dot for each task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genreward_fast.bench.signal.scoring import COMPARISONS
from genreward_fast.files import atomic_path

COLORS = {"expert_over_random": "#2a6fbb", "expert_over_half": "#2f9e60", "half_over_random": "#d9822b"}
CHANCE = 0.5


def draw(result: dict[str, Any], path: Path) -> None:
    """Draws the rewards that were measured, in the order of the results."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rewards = {name: entry for name, entry in result["rewards"].items() if entry["tasks"]}
    figure = Figure(figsize=(2.2 + 1.3 * max(len(rewards), 2), 3.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    width = 0.8 / len(COMPARISONS)
    for number, name in enumerate(COMPARISONS):
        places = [place + (number - 1) * width for place in range(len(rewards))]
        means = [entry["mean"][name] for entry in rewards.values()]
        axis.bar(places, means, 0.92 * width, color=COLORS[name], alpha=0.55, label=name.replace("_", " "))
        for place, entry in zip(places, rewards.values()):
            values = [figures[name] for figures in entry["tasks"].values()]
            spread = [place + width * (0.5 * (i + 0.5) / len(values) - 0.25) for i in range(len(values))]
            axis.scatter(spread, values, s=12, color=COLORS[name], edgecolors="white", linewidths=0.5, zorder=3)
    axis.axhline(CHANCE, color="#57606a", linewidth=1, linestyle="--")
    labels = [name.replace(":", "\n") + _remark(entry["weights"]) for name, entry in rewards.items()]
    axis.set_xticks(range(len(rewards)), labels, fontsize=8)
    axis.set_ylim(0, 1.04)
    axis.set_ylabel("AUC: mean (bar), tasks (dots)", fontsize=8)
    axis.tick_params(axis="y", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(COMPARISONS), fontsize=8, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _remark(weights: str) -> str:
    """What must stand below a reward whose weights are not trained."""
    return next((f"\n{note}" for note in ("untrained", "random") if weights.startswith(note)), "")
