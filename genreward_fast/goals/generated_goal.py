"""Goals made by the shipped image-to-video model: a task's first frame and its description become a video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from genreward_fast.encoders.presets import Encoders
from genreward_fast.envs.env_config import EnvConfig
from genreward_fast.envs.metaworld_env import MetaWorldEnv
from genreward_fast.envs.tasks import describe
from genreward_fast.errors import UserError
from genreward_fast.goals.generate import load_generator
from genreward_fast.goals.generation import GenerationConfig
from genreward_fast.goals.goal import Goal
from genreward_fast.goals.video_model import shipped_generator

SAMPLER = GenerationConfig(steps=20, guidance=2.0)
"""How the shipped model makes its videos: a few seconds on a CPU."""
CAMERA, RENDERING = "corner", "fast"
"""What its training showed it."""


def goal_from_generator(
    task: str,
    encoders: Encoders | None = None,
    *,
    folder: Path | None = None,
    seed: int = 0,
    camera: str = CAMERA,
    rendering: str = RENDERING,
    select: str | int = "clip",
    text: str | None = None,
    config: GenerationConfig = SAMPLER,
) -> Goal:
    """A goal whose video is generated from the first frame of an episode.

    Args:
        task: any of the names of a Meta-World task.
        encoders: their text and image encoder scores the frames. None scores nothing.
        folder: of the model; None for the shipped one.
        seed: of the start, and of what the sampler draws.
        camera, rendering: as the agent's environment has them; the shipped model knows no others.
        select: the goal frame: `clip`, `last` or an index.
        text: the task in words; None for the task's own description.
        config: how it is sampled; its seed is replaced.

    Raises:
        UserError: no such task, a model that does not ship, or a view that the shipped one does not know.
    """
    source = folder or shipped_generator()
    if source is None:
        raise UserError("no image-to-video model ships with this version; pass --goal DIR, or --show expert")
    if folder is None and (camera, rendering) != (CAMERA, RENDERING):
        raise UserError(
            f"--camera {camera} --rendering {rendering}: the shipped image-to-video model knows {CAMERA} and "
            f"{RENDERING} only; use --show expert"
        )
    env_config = EnvConfig(task=task, camera=camera, rendering=rendering)  # type: ignore[arg-type]  # checked there
    words = text or describe(env_config.task)
    generator, (given, nothing) = load_generator(words, "tiny", str(source), None, config, torch.device("cpu"))
    generator.pipeline.set_progress_bar_config(disable=True)
    first = first_frame(env_config.task, seed, generator.size.height, camera, rendering)
    ((_, video),) = generator.generate(first, given, nothing, seed)
    provenance: dict[str, Any] = {
        "source": "the shipped image-to-video model" if folder is None else str(folder),
        "task": env_config.task,
        "seed": seed,
        "camera": camera,
        "rendering": rendering,
        "steps": config.steps,
        "guidance": config.guidance,
    }
    return Goal.from_video(
        video, words, select=select, encoder=encoders.text_image if encoders else None, provenance=provenance
    )


def first_frame(task: str, seed: int, side: int, camera: str = CAMERA, rendering: str = RENDERING) -> torch.Tensor:
    """(side, side, 3) uint8 RGB of the task's episode that begins with this seed."""
    env = MetaWorldEnv(EnvConfig(task=task, camera=camera, rendering=rendering))  # type: ignore[arg-type]
    try:
        env.reset(seed=seed)
        return torch.from_numpy(env.render_sizes((side,))[side].copy())
    finally:
        env.close()
