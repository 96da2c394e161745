"""Figures over seeds and tasks, with 95% bootstrap intervals (rliable: Agarwal et al. 2021, arXiv 2108.13264)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from genreward_fast.errors import UserError
from genreward_fast.training.curves import last_of_each, smooth
from genreward_fast.training.report.runs import Run

REPETITIONS = 1000
POINTS = 60


@dataclass(frozen=True)
class Estimate:
    """A figure over `seeds` runs a task; `low` to `high` is its 95% interval, which one seed does not have."""

    value: float
    low: float | None
    high: float | None
    seeds: int


@dataclass(frozen=True)
class Cell:
    """A method on a task.

    Attributes:
        step: of the evaluations that the figures are from, at the latest.
        success: None where the task does not define it.
    """

    task: str
    method: str
    step: int
    success: Estimate | None
    returns: Estimate


@dataclass(frozen=True)
class Curve:
    """(POINTS,) arrays over environment steps; `low` and `high` are None for a single seed."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None


def value_at(run: Run, name: str, step: int) -> float:
    """The last value of a metric at or before `step`."""
    steps, values = run.series(name)
    return float(values[np.searchsorted(steps, step, side="right") - 1])


def cell(task: str, method: str, runs: list[Run], step: int) -> Cell:
    """The evaluations of a method's runs on a task at `step`."""
    figures = {
        name: mean_estimate(np.array([value_at(run, f"eval/{name}", step) for run in runs]))
        for name in ("success", "return_mean")
        if all(run.last(f"eval/{name}") is not None for run in runs)
    }
    return Cell(task, method, step, figures.get("success"), figures["return_mean"])


def mean_estimate(values: np.ndarray) -> Estimate:
    """Of (n,) values, one a seed."""
    mean, low, high = _interval(values[:, None], lambda scores: np.array([scores.mean()]))
    return Estimate(float(mean[0]), _number(low), _number(high), len(values))


def iqm_estimate(scores: np.ndarray) -> Estimate:
    """Interquartile mean of (seeds, tasks) scores: the mean of the middle half of all of them."""
    metrics = _rliable()[1]
    value, low, high = _interval(scores, lambda s: np.array([metrics.aggregate_iqm(s)]))
    return Estimate(float(value[0]), _number(low), _number(high), len(scores))


def improvement_estimate(first: np.ndarray, second: np.ndarray) -> Estimate:
    """How probably a run of the first method beats one of the second on a task; ties count half.

    Args:
        first, second: (seeds, tasks) scores on the same tasks.
    """
    library, metrics = _rliable()
    value = float(metrics.probability_of_improvement(first, second))
    seeds = min(len(first), len(second))
    if seeds < 2:
        return Estimate(value, None, None, seeds)
    low, high = _bootstrap(library, (first, second), metrics.probability_of_improvement)[:, 0]
    return Estimate(value, float(low), float(high), seeds)


def training_curve(runs: list[Run], name: str, end: int) -> Curve | None:
    """A metric of the training episodes, each run's mean over its last 20, up to `end`; None if a run has none."""
    series = [last_of_each(*_smoothed(run, name)) for run in runs]
    if not all(len(steps) for steps, _ in series):
        return None
    steps = np.linspace(max(steps[0] for steps, _ in series), end, POINTS)
    values = np.stack([line[np.searchsorted(at, steps, side="right") - 1] for at, line in series])
    mean, low, high = _interval(values[:, None], lambda scores: scores.mean((0, 1)))
    return Curve(steps, mean, low, high)


def _smoothed(run: Run, name: str) -> tuple[np.ndarray, np.ndarray]:
    steps, values = run.series(name)
    return (steps, smooth(values)) if len(steps) else (steps, values)


def _interval(
    scores: np.ndarray, figure: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """A figure of (seeds, tasks, ...) scores, with its interval over the seeds of each task."""
    value = figure(scores)
    if len(scores) < 2:
        return value, None, None
    low, high = _bootstrap(_rliable()[0], scores, figure)
    return value, low, high


def _bootstrap(library: Any, scores: Any, figure: Callable[..., np.ndarray]) -> np.ndarray:
    """(2, n): the ends of the interval of an n-fold figure. The same scores give the same interval."""
    before = np.random.get_state()  # noqa: NPY002 - rliable draws from numpy's global generator, whatever it is given
    np.random.seed(0)  # noqa: NPY002
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # rliable hands arch an argument that arch has renamed
            _, intervals = library.get_interval_estimates({"": scores}, figure, reps=REPETITIONS)
    finally:
        np.random.set_state(before)  # noqa: NPY002
    return intervals[""]


def _number(value: np.ndarray | None) -> float | None:
    return None if value is None else float(value[0])


def require_rliable() -> None:
    """Raises UserError if rliable is not installed."""
    _rliable()


def _rliable() -> tuple[Any, Any]:
    try:
        from rliable import library, metrics
    except ImportError:
        raise UserError('genreward report needs rliable: pip install "genreward-fast[report]"') from None
    return library, metrics
