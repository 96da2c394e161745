"""The file of results: written after every reward and task, and read again by a resumed run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from genreward_fast.bench.signal.picture import draw
from genreward_fast.bench.signal.scoring import COMPARISONS
from genreward_fast.errors import UserError
from genreward_fast.files import read_json, write_json
from genreward_fast.training.device import describe_device


class Results:
    """
    Attributes:
        path: of the JSON file; the picture lies beside it.
        copy: of a second one, or None.
        values: what is in it: `settings`, `device`, `torch`, `tasks` (how many episodes and rows, and the goal), and
            for each of `rewards` its `weights` in words, its `tasks` with AUCs and returns, their `mean`; and the
            `error` that kept it from being measured, on all tasks or on those that are not there.
    """

    def __init__(
        self, path: Path, settings: dict[str, Any], device: torch.device, *, resume: bool, copy: Path | None = None
    ):
        """
        Raises:
            UserError: the file is there already, or was begun with other settings; damaged.
        """
        self.path, self.copy = path, copy
        self.values: dict[str, Any] = {
            "settings": settings,
            "device": describe_device(device),
            "torch": torch.__version__,
            "tasks": {},
            "rewards": {},
        }
        if not path.exists():
            return
        if not resume:
            raise UserError(f"{path}: is there already; go on with --resume, or name another --out")
        found = read_json(path)
        if not isinstance(found, dict) or not all(
            isinstance(found.get(name), dict) for name in ("settings", "rewards")
        ):
            raise UserError(f"{path}: is no result of genreward signal; name another --out")
        for name, value in settings.items():
            if found["settings"].get(name) != value:
                theirs = found["settings"].get(name)
                raise UserError(f"{path}: was begun with {name} {theirs}, not {value}; name another --out")
        self.values |= {name: found[name] for name in ("tasks", "rewards")}

    def measured(self, reward: str, task: str) -> bool:
        return task in self.values["rewards"].get(reward, {}).get("tasks", {})

    def describe(self, task: str, about: dict[str, Any]) -> None:
        """What is known of a task's episodes.

        Raises:
            UserError: it is something else than when the results were begun.
        """
        there = self.values["tasks"].setdefault(task, about)
        if there != about:
            raise UserError(f"{self.path}: was begun with other episodes or another goal of {task}; name another --out")

    def add(self, reward: str, task: str, measured: dict[str, Any]) -> None:
        """The AUCs, returns, weights and seconds of one reward on one task."""
        entry = self._entry(reward)
        entry["tasks"][task] = measured
        tasks = list(entry["tasks"].values())
        entry["weights"] = weights_text(tasks)
        entry["mean"] = {name: mean(figures[name] for figures in tasks) for name in COMPARISONS}
        self.save()

    def fail(self, reward: str, error: str) -> None:
        """Why a reward could not be measured, or not on all tasks."""
        self._entry(reward)["error"] = error
        self.save()

    def save(self) -> None:
        for path in [self.path] if self.copy is None else [self.path, self.copy]:
            write_json(path, self.values)
            draw(self.values, path.with_suffix(".png"))

    def lines(self) -> list[str]:
        """The means over the tasks, as text."""
        width = max([len(name) for name in self.values["rewards"]], default=0)
        heads = [name.replace("_", " ") for name in COMPARISONS]
        lines = [f"{'mean AUC':{width}}  {'  '.join(heads)}  weights"]
        for reward, entry in self.values["rewards"].items():
            if entry["tasks"]:
                cells = [f"{entry['mean'][name]:{len(name)}.3f}" for name in COMPARISONS]
                lines.append(f"{reward:{width}}  {'  '.join(cells)}  {entry['weights']}")
            if "error" in entry:
                lines.append(f"{reward:{width}}  not measured{_on(entry, self.values)}: {entry['error']}")
        return lines

    def _entry(self, reward: str) -> dict[str, Any]:
        entry = self.values["rewards"].setdefault(reward, {"weights": "", "tasks": {}})
        entry.pop("error", None)
        return entry


def weights_text(tasks: Sequence[dict[str, Any]]) -> str:
    """Which weights a reward had on its tasks, and from how many to how many updates it had here."""
    ranges = []
    for network in tasks[0]["updates"]:
        counts = sorted({figures["updates"][network] for figures in tasks})
        ranges.append(f"{network} {counts[0]}" + (f" to {counts[-1]}" if len(counts) > 1 else ""))
    return tasks[0]["weights"] + (f"; updates: {', '.join(ranges)}" if ranges else "")


def _on(entry: dict[str, Any], values: dict[str, Any]) -> str:
    """On how many tasks, for a reward that was measured on others."""
    return f" on {len(values['tasks']) - len(entry['tasks'])} tasks" if entry["tasks"] else ""
