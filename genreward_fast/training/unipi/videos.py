"""Where the planner's videos come from."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from genreward_fast.goals.generation import VideoGenerator


class VideoSource(Protocol):
    """
    Attributes:
        frame_size: side in pixels of the square frame that a video begins with; 0 if it needs none.
    """

    frame_size: int

    def __call__(self, frame: Tensor | None, seed: int) -> Tensor:
        """(T, H, W, 3) uint8 on the CPU, from what the environment shows now: (S, S, 3) uint8."""
        ...


class GivenVideo:
    """One video, whatever the environment shows."""

    frame_size = 0

    def __init__(self, video: Tensor) -> None:
        self.video = video

    def __call__(self, frame: Tensor | None, seed: int) -> Tensor:
        return self.video


class GeneratedVideos:
    """A video of the task from the present frame on."""

    def __init__(self, generator: VideoGenerator, embedded: Tensor, frame_size: int) -> None:
        """
        Args:
            embedded: (2, L, D), the task's text and "".
            frame_size: as the demonstrations of the inverse dynamics have it.
        """
        self.generator, self.frame_size = generator, frame_size
        self._embedded = embedded

    def __call__(self, frame: Tensor | None, seed: int) -> Tensor:
        assert frame is not None
        text, empty_text = self._embedded
        ((_, video),) = self.generator.generate(frame, text, empty_text, seed)
        return video
