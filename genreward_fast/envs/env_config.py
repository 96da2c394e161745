"""What an environment is made from. Importing this loads neither MuJoCo nor Meta-World."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from genreward_fast.envs.seeds import Split
from genreward_fast.envs.tasks import canonical
from genreward_fast.errors import UserError

CAMERAS: tuple[str, ...] = ("corner", "corner2", "corner3", "corner4", "topview", "behindGripper", "gripperPOV")
"""The cameras that every Meta-World model has."""

ACTION_SIZE = 4
"""Displacement of the hand (3) and effort of the gripper, in every task."""

Rendering = Literal["fast", "quality"]


def check_rendering(rendering: str) -> None:
    """Raises UserError unless it is one of `Rendering`."""
    if rendering not in ("fast", "quality"):
        raise UserError(f"rendering {rendering!r}: choose 'fast' or 'quality'")


def check_episode(episode_length: int, action_repeat: int) -> None:
    """Raises UserError unless an episode has a whole number of steps, at least one."""
    if action_repeat < 1:
        raise UserError(f"action_repeat {action_repeat}: must be at least 1")
    if episode_length < 1 or episode_length % action_repeat:
        raise UserError(
            f"episode_length {episode_length}: must be positive and a multiple of action_repeat ({action_repeat})"
        )


@dataclass(frozen=True)
class EnvConfig:
    """A Meta-World environment.

    Attributes:
        task: any of the names that `tasks.canonical` accepts; held as the canonical one.
        camera: one of `CAMERAS`.
        episode_length: simulator actions in an episode, counting every repeat: an episode has
            `episode_length / action_repeat` steps, and one row more.
        action_repeat: how often each action is applied; rewards add up, and success at any of them counts.
        rendering: "fast" has no shadows, reflections or multisampling; "quality" has all of Meta-World's. Pixels
            differ, so training, goals and evaluation must share one setting.

    Raises:
        UserError: a value is out of its range.
    """

    has_success: ClassVar[bool] = True
    factory: ClassVar[str] = "genreward_fast.envs.metaworld_env:make"
    action_size: ClassVar[int] = ACTION_SIZE

    task: str
    camera: str = "corner"
    episode_length: int = 256
    action_repeat: int = 1
    rendering: Rendering = "fast"

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", canonical(self.task))
        if self.camera not in CAMERAS:
            raise UserError(f"camera {self.camera!r}: choose one of {', '.join(CAMERAS)}")
        check_rendering(self.rendering)
        check_episode(self.episode_length, self.action_repeat)

    @property
    def steps(self) -> int:
        """Steps in an episode."""
        return self.episode_length // self.action_repeat

    @property
    def description(self) -> str:
        """The environment in words, for titles."""
        return self.task

    def for_split(self, split: Split) -> EnvConfig:
        """Itself: episodes of training and of evaluation differ by their seeds alone."""
        return self
