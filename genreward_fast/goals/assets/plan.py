"""What is recorded and held out, how long each part trains, and which files a build's folder holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genreward_fast.envs.tasks import PAPER_TASKS, TASKS
from genreward_fast.errors import UserError

PARTS = ("data", "vae", "dino", "clip", "generator", "check")
"""In the order in which they are run: those that learn read nothing but `data`, but for `generator`, which needs the
trained `vae` (and measures with `dino` if it is there); `check` reads them all."""

HELD_OUT_TASKS = ("plate-slide-side", "push-wall", "drawer-open", "faucet-close")
"""No part trains on these."""

MINUTES = {"vae": 14.0, "dino": 7.0, "clip": 5.0, "generator": 12.0}
"""How long the parts train at most, of a build's 45 minutes; the rest is left for the recordings and for measuring."""
TOTAL_MINUTES = 45.0

MAX_BYTES = 12_000_000
"""Of all weights that ship."""


@dataclass(frozen=True)
class RecordingConfig:
    """Which episodes of each task are recorded.

    Attributes:
        tasks: canonical names.
        train: episodes of each kind (expert, half-expert, random) to train on.
        held_out: episodes of each kind that nothing trains on.
        paper_held_out: the same of the paper's five tasks.
        sizes: sides of the frames in pixels: the tiny preset's clips and features.
        every: of so many frames of an episode, one is kept.
        after: steps that an expert goes on for after its first success.
        random_steps: length of a random episode.
        seed: of all starts.
    """

    tasks: tuple[str, ...] = TASKS
    train: tuple[int, int, int] = (10, 4, 4)
    held_out: tuple[int, int, int] = (3, 1, 1)
    paper_held_out: tuple[int, int, int] = (8, 8, 8)
    sizes: tuple[int, ...] = (128, 64)
    every: int = 2
    after: int = 24
    random_steps: int = 128
    seed: int = 0

    def counts(self, task: str) -> tuple[tuple[int, int], ...]:
        """For each kind, how many episodes are trained on and how many are held out."""
        held_out = self.paper_held_out if task in PAPER_TASKS else self.held_out
        if task in HELD_OUT_TASKS:
            return tuple((0, held) for held in held_out)
        return tuple(zip(self.train, held_out))


@dataclass(frozen=True)
class BuildFolder:
    """The files of a build.

    Attributes:
        root: the folder given as --out.
    """

    root: Path

    def recording(self, task: str) -> Path:
        return self.root / "data" / f"{task}.safetensors"

    def weights(self, part: str) -> Path:
        """The trained part in its library's own format, with its model card."""
        return self.root / "tiny" / part

    def checkpoint(self, part: str) -> Path:
        return self.root / "checkpoints" / f"{part}.pt"

    def measured(self, part: str) -> Path:
        """What the part measured on held-out episodes, JSON."""
        return self.root / "results" / f"{part}.json"


def seconds_of(part: str, minutes: float) -> float:
    """How long `part` may train in a build of so many minutes.

    Raises:
        UserError: minutes is not positive.
    """
    if not minutes > 0:
        raise UserError(f"--minutes {minutes}: must be positive")
    return 60 * MINUTES[part] * minutes / TOTAL_MINUTES
