"""The contract of every reward: what it must be shown, how it scores a window, how it learns."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from genreward_fast.types import Batch, FrameSpec, Window

WHOLE_RUN = sys.maxsize
"""`learn_steps` of a reward that learns as long as the run goes on, and pays from the start."""


@runtime_checkable
class RewardModel(Protocol):
    """A reward that is added to the environment's own. Implementations live beside this file, one a file.

    Attributes:
        frames: which pixels it must be given.
        learn_steps: environment steps during which `update` is to be called once per agent update; then `freeze` is
            called once. 0 for a reward that does not learn, `WHOLE_RUN` for one that is never frozen.
        frozen: whether learning is over (always true for a reward that does not learn).
    """

    frames: FrameSpec
    learn_steps: int
    frozen: bool

    def features(self, frames: Tensor) -> Tensor:
        """ψ of single frames: (N, S, S, 3) uint8, S = `frames.feature_size`, to (N, D). Kept in the replay."""
        ...

    def score(self, window: Window) -> Tensor:
        """(B, T) float32 that is added to the environment's reward; row t belongs to (s_t, a_t)."""
        ...

    def parts(self, window: Window) -> dict[str, Tensor]:
        """What `score` is the sum of, each (B, T), and unscaled values for the logs under names that end in `_raw`."""
        ...

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of learning on pairs of consecutive rows (T = 2); scalar metrics. {} for one that does not learn."""
        ...

    def freeze(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """Ends learning, and measures on `batches` what later scores are standardised by; scalar metrics."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@contextmanager
def inline(*_: Tensor) -> Iterator[None]:
    """What is computed in here is computed here and now: the `encoding` of a reward that nobody has moved."""
    yield


@runtime_checkable
class EncodesWindows(Protocol):
    """A reward whose scoring has a costly part that may run beside other work.

    Attributes:
        encoding: a context, given what the part reads of others, around it. Whoever puts it on a CUDA stream of its
            own reads the results of `parts` on that stream alone, or after it.
    """

    encoding: Callable[..., AbstractContextManager[None]]


def total(parts: dict[str, Tensor]) -> Tensor:
    """The sum of the parts that count: all whose name does not end in `_raw`. (B, T)."""
    counted = [value for name, value in parts.items() if not name.endswith("_raw")]
    return sum(counted[1:], start=counted[0])
