"""What a dm_control environment is made from. Importing this loads neither MuJoCo nor dm_control."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from genreward_fast.envs.control_tasks import action_size, canonical_control, usual_action_repeat
from genreward_fast.envs.env_config import Rendering, check_episode, check_rendering
from genreward_fast.envs.seeds import Split
from genreward_fast.errors import UserError

DISTRACTIONS: tuple[str, ...] = ("none", "easy", "medium", "hard")
DISTRACTION_TYPES: tuple[str, ...] = ("color", "camera", "background")
DEFAULT_CAMERA = "default"


@dataclass(frozen=True)
class ControlConfig:
    """A task of dm_control's suite, as it is or with distractions (Stone et al. 2021, arXiv 2101.02722).

    Attributes:
        task: any of the names that `control_tasks.canonical_control` accepts; held as the canonical one.
        camera: a camera of the task's model; "default" is its first, and quadruped's third.
        episode_length: simulator steps in an episode, counting every repeat.
        action_repeat: how often each action is applied; rewards add up. None is replaced by the task's published one.
        rendering: "fast" has no shadows, reflections or multisampling, and backgrounds of 256×256 pixels; "quality" has
            all that dm_control has, and backgrounds of 800×800.
        distraction: "none", "easy", "medium" or "hard".
        distraction_types: which of `DISTRACTION_TYPES` there are; without "none".
        dynamic_distractions: they change on every step instead of with every episode.
        backgrounds: a folder of images or videos (`backgrounds.find_clips`), held as an absolute path; None for
            procedural ones.
        split: whether backgrounds are those for training or those for evaluation; see `for_split`.

    Raises:
        UserError: a value is out of its range.
    """

    has_success: ClassVar[bool] = False
    factory: ClassVar[str] = "genreward_fast.envs.control_env:make"

    task: str
    camera: str = DEFAULT_CAMERA
    episode_length: int = 1000
    action_repeat: int = None  # type: ignore[assignment]  # replaced below
    rendering: Rendering = "fast"
    distraction: str = "none"
    distraction_types: tuple[str, ...] = DISTRACTION_TYPES
    dynamic_distractions: bool = False
    backgrounds: str | None = None
    split: Split = "train"

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", canonical_control(self.task))
        if self.action_repeat is None:
            object.__setattr__(self, "action_repeat", usual_action_repeat(self.task))
        check_rendering(self.rendering)
        check_episode(self.episode_length, self.action_repeat)
        if self.distraction not in DISTRACTIONS:
            raise UserError(f"distraction {self.distraction!r}: choose one of {', '.join(DISTRACTIONS)}")
        unknown = [kind for kind in self.distraction_types if kind not in DISTRACTION_TYPES]
        if unknown or not self.distraction_types:
            named = repr(unknown[0]) if unknown else "none is named"
            raise UserError(f"distraction_types: {named}; choose some of {', '.join(DISTRACTION_TYPES)}")
        ordered = tuple(kind for kind in DISTRACTION_TYPES if kind in self.distraction_types)
        object.__setattr__(self, "distraction_types", ordered)
        if self.dynamic_distractions and self.distraction == "none":
            raise UserError(
                "dynamic distractions: there are none; choose the distraction easy, medium or hard with them"
            )
        if self.backgrounds is not None:
            if self.distraction == "none" or "background" not in ordered:
                raise UserError(
                    f"backgrounds {self.backgrounds}: they would not be shown; choose the distraction easy, medium or "
                    "hard, with background among its types"
                )
            object.__setattr__(self, "backgrounds", str(Path(self.backgrounds).expanduser().absolute()))

    @property
    def steps(self) -> int:
        """Steps in an episode that nothing ends earlier."""
        return self.episode_length // self.action_repeat

    @property
    def action_size(self) -> int:
        return action_size(self.task)

    @property
    def description(self) -> str:
        """The environment in words, for titles."""
        if self.distraction == "none":
            return self.task
        dynamic = ["dynamic"] if self.dynamic_distractions else []
        types = [] if self.distraction_types == DISTRACTION_TYPES else [" and ".join(self.distraction_types)]
        return f"{self.task}, {' '.join([self.distraction, *dynamic, *types, 'distractions'])}"

    def for_split(self, split: Split) -> ControlConfig:
        """The same with the backgrounds of "eval", or else with those of "train"."""
        return replace(self, split="eval" if split == "eval" else "train")
