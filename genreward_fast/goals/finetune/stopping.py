"""Ending a run in order when a signal asks for it."""

from __future__ import annotations

import signal
import threading


class StopSignal:
    """Inside, SIGINT and SIGTERM are remembered instead of obeyed; outside the main thread nothing changes.

    Attributes:
        number: of the last signal, 0 for none.
    """

    def __init__(self) -> None:
        self.number = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, _frame: object) -> None:
        self.number = number
