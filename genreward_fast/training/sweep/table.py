"""How a sweep is shown while it goes on: a live table on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from genreward_fast.training.logger import duration
from genreward_fast.training.sweep.progress import Reading

COLUMNS = ("task", "env reward", "reward", "seed", "state", "steps", "steps/s", "return", "success", "left")
_ORDER = ("running", "stopping", "retrying", "failed", "waiting", "finished")
_STYLE = {"running": "cyan", "failed": "red", "finished": "green", "stopping": "yellow", "retrying": "yellow"}
_LINE_SECONDS = 60.0


@dataclass(frozen=True)
class Row:
    """A trial as it is shown. `state` is one of `_ORDER`; `steps`: that the run ends at."""

    name: str
    task: str
    env_reward: str
    reward: str
    seed: int
    state: str
    steps: int
    reading: Reading

    @property
    def seconds_left(self) -> float | None:
        if self.state != "running" or not self.reading.rate:
            return None
        return (self.steps - self.reading.step) / self.reading.rate

    def cells(self) -> tuple[str, ...]:
        """What stands in `COLUMNS`."""
        reading, left = self.reading, self.seconds_left
        return (
            self.task,
            self.env_reward,
            self.reward,
            str(self.seed),
            self.state,
            f"{reading.step}/{self.steps}",
            "" if reading.rate is None else f"{reading.rate:.1f}",
            "" if reading.episode_return is None else f"{reading.episode_return:.1f}",
            "" if reading.success is None else f"{reading.success:.0%}",
            "" if left is None else duration(left),
        )


class Display:
    """Shows rows again and again; a context manager. Goes to the error stream, as all progress does."""

    def __init__(self, console: Any = None):
        """`console`: a rich Console, for tests. Without rich there are lines on a terminal, too."""
        self._console: Any = None
        self._live: Any = None
        self._shown = -_LINE_SECONDS
        try:
            from rich.console import Console
            from rich.live import Live
        except ImportError:
            return
        self._console = console or Console(stderr=True)
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        """One line that stays."""
        if self._console is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def update(self, rows: Sequence[Row], at_once: int) -> None:
        """The trials as they are now, of which `at_once` have a place; in lines, once a minute."""
        if self._live is not None:
            self._live.update(self._table(rows, at_once), refresh=True)
        elif time.monotonic() - self._shown >= _LINE_SECONDS:
            self._shown = time.monotonic()
            self.say(line_of(rows, at_once))

    def _table(self, rows: Sequence[Row], at_once: int) -> Any:
        """As many trials as the terminal has lines for, those that something happens to first."""
        from rich.table import Table

        table = Table(*COLUMNS, box=None, padding=(0, 2, 0, 0), caption_justify="left", header_style="bold")
        shown = sorted(rows, key=lambda row: _ORDER.index(row.state))[: max(self._console.height - 4, 1)]
        for row in shown:
            table.add_row(*row.cells(), style=_STYLE.get(row.state))
        hidden = f"{len(rows) - len(shown)} not shown; " if len(shown) < len(rows) else ""
        table.caption = hidden + summary_of(rows, at_once)
        return table


def summary_of(rows: Sequence[Row], at_once: int) -> str:
    """ "12 trials: 3 finished, 2 running, 7 waiting; 1:23:00 left"."""
    counts = Counter(row.state for row in rows)
    states = ", ".join(f"{counts[state]} {state}" for state in reversed(_ORDER) if counts[state])
    left = time_left(rows, at_once)
    return f"{len(rows)} trials: {states}" + ("" if left is None else f"; {duration(left)} left")


def line_of(rows: Sequence[Row], at_once: int) -> str:
    """The summary, and how far the running trials are."""
    running = [f"{row.name} {row.reading.step}/{row.steps}" for row in rows if row.state == "running"]
    return summary_of(rows, at_once) + (f" ({', '.join(running)})" if running else "")


def time_left(rows: Sequence[Row], at_once: int) -> float | None:
    """Seconds until all is done, if what waits runs as fast as what runs; None as long as no rate is known."""
    rates = [row.reading.rate for row in rows if row.state == "running" and row.reading.rate]
    if not rates:
        return None
    steps = sum(row.steps - row.reading.step for row in rows if row.state not in ("finished", "failed"))
    longest = max(left for row in rows if (left := row.seconds_left) is not None)
    return max(longest, steps / (sum(rates) / len(rates)) / max(at_once, 1))
