"""Run folders, read for a report. Nothing in them is changed, and a run may still be going on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genreward_fast.errors import UserError
from genreward_fast.files import read_json
from genreward_fast.training.logger import read_metrics
from genreward_fast.training.run_folder import RunFolder

NEEDED = ("env.task", "reward.name", "train.seed", "train.steps", "train.env_reward")


@dataclass(frozen=True)
class Run:
    """One run, as far as it has come.

    Attributes:
        folder: where it lies.
        settings: config.json, flat: {"reward.alpha": 10.0, ...}.
        records: of metrics.jsonl, in order.
        summary: summary.json; None until training has ended.
    """

    folder: RunFolder
    settings: dict[str, Any]
    records: list[dict[str, Any]]
    summary: dict[str, Any] | None

    @property
    def name(self) -> str:
        return self.folder.path.name

    @property
    def task(self) -> str:
        return self.settings["env.task"]

    @property
    def seed(self) -> int:
        return self.settings["train.seed"]

    @property
    def last_step(self) -> int:
        return max((record["step"] for record in self.records), default=0)

    @property
    def is_evaluated(self) -> bool:
        return any("eval/return_mean" in record for record in self.records)

    @property
    def notes(self) -> list[str]:
        return [note for record in self.records for note in record.get("notes", [])]

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a metric, two (n,) float64 arrays."""
        points = [(record["step"], record[name]) for record in self.records if name in record]
        return np.array([step for step, _ in points], float), np.array([value for _, value in points], float)

    def last(self, name: str) -> float | None:
        """The latest value of a metric."""
        values = self.series(name)[1]
        return float(values[-1]) if len(values) else None


def read_runs(paths: Iterable[Path]) -> list[Run]:
    """The runs in these folders, each of them a run or with runs somewhere below it, in the order of their paths.

    Raises:
        UserError: a folder is missing or holds no run, or a run's settings are not those of a run.
    """
    found: dict[Path, Run] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: no such folder; name the --out folder of a genreward train")
        configs = [path / "config.json"] if (path / "config.json").exists() else sorted(path.rglob("config.json"))
        folders = [config.parent for config in configs if (config.parent / RunFolder(path).metrics.name).exists()]
        if not folders:
            raise UserError(f"{path}: holds no run (no config.json with metrics.jsonl beside it)")
        for folder in folders:
            found.setdefault(folder.resolve(), read_run(folder))
    return list(found.values())


def read_run(path: Path) -> Run:
    """The run in this folder. Raises UserError if its settings are damaged or not those of a run."""
    folder = RunFolder(path)
    settings = flat(read_json(folder.config))
    for name in NEEDED:
        if name not in settings:
            raise UserError(f"{folder.config}: has no {name}; it is not of a genreward train, or damaged")
    summary = read_json(folder.summary) if folder.summary.exists() else None
    return Run(folder, settings, read_metrics(path), summary)


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    if not isinstance(value, dict):
        return {prefix: value}
    result: dict[str, Any] = {}
    for key, entry in value.items():
        result |= flat(entry, f"{prefix}.{key}" if prefix else key)
    return result
