"""What `genreward eval --policy unipi` does, from its flags on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from genreward_fast.envs.env_config import ACTION_SIZE, EnvConfig
from genreward_fast.envs.tasks import canonical, describe
from genreward_fast.errors import UserError
from genreward_fast.files import write_json
from genreward_fast.goals.generate import load_generator
from genreward_fast.goals.generation import GenerationConfig
from genreward_fast.goals.goal import Goal
from genreward_fast.goals.progress import progress
from genreward_fast.goals.video_io import write_video
from genreward_fast.goals.video_model import require_generate_extra
from genreward_fast.training.device import resolve_device
from genreward_fast.training.evaluation import evaluate
from genreward_fast.training.settings import check_seed
from genreward_fast.training.start import EvaluatedRun, check_counts
from genreward_fast.training.unipi.inverse_dynamics import FittedDynamics
from genreward_fast.training.unipi.plan import check_video
from genreward_fast.training.unipi.planner import Planner
from genreward_fast.training.unipi.videos import GeneratedVideos, GivenVideo, VideoSource

RESULT = "evaluation.json"
PLAN_FPS = 8.0


@dataclass(frozen=True)
class UniPiConfig:
    """
    Attributes:
        task: by any of its names.
        inverse_dynamics: folder (`genreward fit inverse-dynamics`).
        out: folder of the result: evaluation.json, evaluation.mp4 (the first episode), plan.mp4 (its first video).
        preset, video_model, lora: which video model; see `goals.generate`.
        goal: folder of a goal whose video is followed instead of generated ones.
        text: the task in words; None for its description.
        plan_steps: environment steps that a video spans; None for the goal's own number, or the mean of the task's
            demonstrations.
        replan: steps from one plan's beginning to the next one's; None for one plan an episode.
        episodes, envs, seed: as in the evaluation of a run.
        device: of the video model and the inverse dynamics.
        denoising_steps, guidance: of the videos.

    Raises:
        UserError: a value is out of its range.
    """

    task: str
    inverse_dynamics: Path
    out: Path
    preset: str = "paper"
    video_model: str | None = None
    lora: Path | None = None
    goal: Path | None = None
    text: str | None = None
    plan_steps: int | None = None
    replan: int | None = None
    episodes: int = 20
    envs: int = 1
    seed: int = 0
    device: str = "auto"
    denoising_steps: int = 50
    guidance: float = 6.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", canonical(self.task))
        check_counts(episodes=self.episodes, envs=self.envs, plan_steps=self.plan_steps, replan=self.replan)
        check_seed(self.seed)
        if self.goal is not None:
            for name in ("video_model", "lora", "text", "replan"):
                if getattr(self, name) is not None:
                    flag = f"--{name.replace('_', '-')}"
                    raise UserError(f"{flag} together with --goal: a given video is followed as it is; leave one out")


def evaluate_unipi(config: UniPiConfig) -> EvaluatedRun:
    """Evaluates the planner on the episodes on which the runs of the same task and seed are evaluated.

    Raises:
        UserError: bad input, or a folder `out` that is not empty.
        RunFailed: out of memory.
    """
    if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        raise UserError(f"{config.out}: exists and is not an empty folder; name another one with --out")
    device = resolve_device(config.device)
    fitted = FittedDynamics.load(config.inverse_dynamics, device)
    if fitted.network.config.action_size != ACTION_SIZE:
        raise UserError(
            f"{config.inverse_dynamics}: its actions have {fitted.network.config.action_size} numbers, "
            f"Meta-World's {ACTION_SIZE}; fit to demonstrations of Meta-World"
        )
    env = EnvConfig(config.task, camera=fitted.record["camera"], rendering=fitted.record["rendering"])
    goal = None if config.goal is None else Goal.load(config.goal)
    steps = _plan_steps(config, fitted.record, goal)
    if steps > env.steps:
        raise UserError(f"--plan-steps {steps}: an episode has {env.steps}")
    if config.replan is not None and config.replan > steps:
        raise UserError(f"--replan {config.replan}: a plan is {steps} steps long; use at most that")
    videos, source = _videos(config, fitted, goal, steps, device)
    planner = Planner(fitted.network, videos, steps, config.replan, config.seed)
    with progress(total=config.episodes, unit="episode", desc=f"unipi, {config.task}") as bar:
        result = evaluate(
            planner,
            env,
            episodes=config.episodes,
            envs=config.envs,
            seed=config.seed,
            video=config.out / "evaluation.mp4",
            on_episode=bar.update,
        )
    assert result is not None
    assert planner.first_video is not None
    write_video(config.out / "plan.mp4", planner.first_video, PLAN_FPS)
    evaluated = EvaluatedRun(config.task, result, config.out / "evaluation.mp4", _notes(config, fitted.record))
    how: dict[str, Any] = {"policy": "unipi", "video": source, "plan_steps": steps, "replan": config.replan}
    how |= {"inverse_dynamics": str(config.inverse_dynamics), "seed": config.seed}
    write_json(config.out / RESULT, evaluated.record() | {"unipi": how})
    return evaluated


def _plan_steps(config: UniPiConfig, record: dict[str, Any], goal: Goal | None) -> int:
    if config.plan_steps is not None:
        return config.plan_steps
    if goal is not None and "steps" in goal.provenance:
        return int(goal.provenance["steps"])
    if config.task not in record["tasks"]:
        raise UserError(
            f"{config.inverse_dynamics}: was fitted without {config.task}, so how long a plan takes is not known; "
            "give --plan-steps"
        )
    return round(record["tasks"][config.task])


def _videos(
    config: UniPiConfig, fitted: FittedDynamics, goal: Goal | None, steps: int, device: torch.device
) -> tuple[VideoSource, str]:
    """Where the videos come from, and how to call that in the record."""
    network = fitted.network.config
    if goal is not None:
        check_video(network, goal.video.shape, steps)
        return GivenVideo(goal.video), f"goal {config.goal}"
    require_generate_extra()
    generation = GenerationConfig(steps=config.denoising_steps, guidance=config.guidance)
    text = config.text or describe(config.task)
    generator, embedded = load_generator(text, config.preset, config.video_model, config.lora, generation, device)
    generator.pipeline.set_progress_bar_config(disable=True)  # the episodes have one
    size = generator.size
    check_video(network, (size.frames, size.height, size.width), steps)
    return GeneratedVideos(generator, embedded, fitted.record["size"]), config.video_model or f"preset {config.preset}"


def _notes(config: UniPiConfig, record: dict[str, Any]) -> list[str]:
    notes = []
    if config.task not in record["tasks"]:
        notes.append(f"the inverse dynamics were fitted without {config.task}")
    if config.goal is not None:
        notes.append("one given video is followed in every episode, wherever that starts")
    return notes
