"""Goals from Meta-World's scripted experts: the task being solved, where no generated video is at hand."""

from __future__ import annotations

from typing import Any

import torch

from genreward_fast.encoders.presets import Encoders
from genreward_fast.envs.env_config import EnvConfig
from genreward_fast.envs.expert import expert_success
from genreward_fast.envs.tasks import describe
from genreward_fast.errors import UserError
from genreward_fast.goals.frames import uniform_indices
from genreward_fast.goals.goal import Goal


def goal_from_expert(
    task: str,
    encoders: Encoders | None = None,
    *,
    seed: int = 0,
    camera: str = "corner",
    rendering: str = "fast",
    frames: int = 49,
    size: int | None = None,
    select: str | int = "last",
    text: str | None = None,
) -> Goal:
    """A goal from an expert's episode, cut off at the first frame that counts as solved.

    The episode is resampled to `frames` frames spread evenly over it; the first and the solved one are always among
    them. Frames repeat if the expert was faster than that.

    Args:
        task: any of the names of a Meta-World task.
        encoders: their clip size is the default size; their text and image encoder scores the frames. None scores
            nothing.
        seed: of the first start that is tried; later ones follow if the expert fails.
        camera, rendering: as the agent's environment has them.
        frames: length of the video; 49 is what the video model generates.
        size: side of the frames in pixels; None for the encoders' clip size, or 480.
        select: the goal frame: `last` (the solved one), `clip` or an index.
        text: the task in words; None for the task's own description.

    Raises:
        UserError: no such task, the expert never succeeded, or a value is out of range.
    """
    if frames < 2:
        raise UserError(f"frames {frames}: a goal's video needs at least 2")
    side = size or (encoders.config.clip_size if encoders else 480)
    config = EnvConfig(task=task, camera=camera, rendering=rendering)  # type: ignore[arg-type]  # checked there
    episode = expert_success(config, seed, (side,))
    if episode.first_success is None:
        raise UserError(f"the expert of {config.task} did not succeed; choose another seed")
    solved = episode.first_success + 1
    pictures = torch.from_numpy(episode.frames[side][: solved + 1])
    video = pictures[uniform_indices(len(pictures), frames)]
    provenance: dict[str, Any] = {
        "source": "scripted expert",
        "task": config.task,
        "seed": episode.seed,
        "camera": camera,
        "rendering": rendering,
        "steps": solved,
    }
    return Goal.from_video(
        video,
        text or describe(config.task),
        select=select,
        encoder=encoders.text_image if encoders else None,
        provenance=provenance,
    )
