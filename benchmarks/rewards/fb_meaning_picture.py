"""The picture of r_FB over time: a row of panels for each kind of features, a column for each task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from genreward_fast.files import atomic_path

REPLAY, VARIANT = "mixed", "replay"  # what is drawn
COLORS = {"expert": "#2f9e60", "half expert": "#d9822b", "random": "#c23b3b"}


def draw(result: dict[str, Any], path: Path) -> None:
    """Draws the curves of one replay and variant, each panel standardised by its random episode."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tasks, kinds = list(result["tasks"]), result["settings"]["features"]
    figure = Figure(figsize=(2.6 * len(tasks) + 0.6, 2.4 * len(kinds) + 0.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(kinds), len(tasks), squeeze=False)
    for row, features in enumerate(kinds):
        for column, task in enumerate(tasks):
            axis = axes[row, column]
            wanted = {"features": features, "replay": REPLAY, "variant": VARIANT}
            figures = result["tasks"][task]["figures"]
            entry = next(f for f in figures if all(f[name] == value for name, value in wanted.items()))
            by_chance = np.array(entry["curves"]["random"])
            for kind, curve in entry["curves"].items():
                values = (np.array(curve) - by_chance.mean()) / max(by_chance.std(), 1e-9)
                axis.plot(values, color=COLORS[kind], linewidth=1.1, label=kind)
            axis.set_title(f"{task}, {features}\nSpearman {entry['spearman']:+.2f}, AUC {entry['auc']:.2f}", fontsize=8)
            axis.grid(color="#d8dee4", linewidth=0.6)
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(labelsize=7)
            axis.set_xlabel("step", fontsize=7)
    axes[0, 0].set_ylabel("r_FB, deviations of the random episode", fontsize=7)
    axes[0, 0].legend(fontsize=7, frameon=False)
    title = f"r_FB at the expert's final frame; FB from the {REPLAY} replay with the replay's next action"
    figure.suptitle(f"{title}; dino: {result['note']}" if result["note"] else title, fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
