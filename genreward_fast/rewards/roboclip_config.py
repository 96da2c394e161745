"""The settings of RoboCLIP, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from genreward_fast.errors import UserError

RoboClipGoal = Literal["video", "text"]


@dataclass(frozen=True)
class RoboClipConfig:
    """RoboCLIP (arXiv 2310.07899).

    Attributes:
        goal: what windows are compared with: the goal's "video", or its "text" (the paper's S3D alone has words).
        every: of the steps of a window, every how manyth frame S3D sees; 4 as published.
        size: side of the frames in pixels, even.
        byte_pixels: give S3D pixels from 0 to 255, as the published Meta-World code does. It was trained on 0 to 1.

    Raises:
        UserError: a value is out of its range.
    """

    goal: RoboClipGoal = "video"
    every: int = 4
    size: int = 224
    byte_pixels: bool = False

    def __post_init__(self) -> None:
        if self.goal not in ("video", "text"):
            raise UserError(f"--roboclip-goal must be video or text, not {self.goal!r}")
        if self.every < 1:
            raise UserError(f"RoboCLIP every must be at least 1, not {self.every}")
        if self.size < 32 or self.size % 2:
            raise UserError(f"RoboCLIP size must be even and at least 32, not {self.size}")
