"""What the commands train, eval and goal do, from resolved settings on."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from genreward_fast.agent.memory import check_memory
from genreward_fast.encoders.engine_choice import check_engine
from genreward_fast.encoders.presets import Encoders
from genreward_fast.envs.env_config import EnvConfig
from genreward_fast.errors import UserError
from genreward_fast.goals.expert_goal import goal_from_expert
from genreward_fast.goals.generated_goal import CAMERA, RENDERING, goal_from_generator
from genreward_fast.goals.goal import Goal
from genreward_fast.goals.video_model import shipped_generator
from genreward_fast.rewards.base import WHOLE_RUN
from genreward_fast.rewards.registry import make_reward
from genreward_fast.training.checkpoint import RunLock
from genreward_fast.training.device import describe_device, resolve_device
from genreward_fast.training.evaluation import AgentActor, Evaluation, evaluate, success_text
from genreward_fast.training.policy import load_agent
from genreward_fast.training.run_folder import RunFolder
from genreward_fast.training.settings import RunConfig, check_seed
from genreward_fast.training.summary import Summary
from genreward_fast.training.trainer import Trainer


def start_run(
    config: RunConfig,
    out: Path,
    *,
    goal: Path | None,
    resume: bool,
    stop: Callable[[Trainer], bool] | None = None,
) -> Summary:
    """Trains in the folder `out` and returns the summary.

    `stop` is asked after every tick whether to end training early (`Trainer.run`).

    Everything that can be wrong with the input is looked at before the first file is written. A run that was killed
    before its first checkpoint is resumed at step 0, with its settings and its goal.

    Raises:
        UserError: bad input.
        Interrupted: a signal stopped the run, after a checkpoint.
    """
    check_engine(config.train.engine)
    folder = RunFolder(out)
    if resume and goal is not None:
        raise UserError("--goal together with --resume: a run keeps the goal it was started with; leave it out")
    folder.require_run() if resume else folder.require_free()
    device = resolve_device(config.train.device)
    check_memory(config.agent, config.env.action_size, device)
    encoders = Encoders(config.clip_encoders, device, config.train.engine, say)
    the_goal = None
    if config.reward.uses_goal:
        source = folder.goal if resume else goal
        the_goal = Goal.load(source) if source else default_goal(config, encoders)
    reward = make_reward(config.reward, the_goal, encoders, config.env.action_size, device, config.train.seed)
    notes = [config.weights_note] if config.weights_note else []
    notes += encoders.engine_notes()

    created = folder.create()
    with RunLock(out):
        folder.remove_leftovers()
        if not resume:
            if the_goal is not None:
                the_goal.save(folder.goal)
            config.save(folder.config)
        try:
            trainer = Trainer(config, out, reward, notes=notes, resume=folder.checkpoint.exists())
        except UserError:
            if created:
                shutil.rmtree(out, ignore_errors=True)
            elif not resume:
                folder.remove_run()
            raise
        with trainer:
            if resume:
                config.save(folder.config)
            doing = f"resuming at step {trainer.rollout.env_steps}:" if resume else "training"
            say(f"{doing} {config.env.description} on {describe_device(device)}, in {out}")
            for note in notes:
                say(f"note: {note}")
            if config.train.steps <= reward.learn_steps < WHOLE_RUN:
                say(f"note: FB learns for {reward.learn_steps} steps (--fb-steps): within this run it pays nothing")
            return trainer.run(stop)


def default_goal(config: RunConfig, encoders: Encoders) -> Goal:
    """What a run gets that was given no goal: a generated video or the task's scripted expert (`generates`).

    Raises:
        UserError: the task has no scripted expert.
    """
    _require_expert(config, "--goal DIR, a goal made from a video")
    generated = generates(config, "auto")
    how = "generating one" if generated else f"making one from the scripted expert of {config.env.task}"
    say(f"no --goal: {how}")
    chosen = config.reward.name == "genreward"  # no other reward asks for one frame, nor needs the run's encoders
    return (goal_from_generator if generated else goal_from_expert)(
        config.env.task,
        encoders if chosen else None,
        seed=config.train.seed,
        camera=config.env.camera,
        rendering=config.env.rendering,
        select=frame_choice("auto", encoders) if chosen else "last",
    )


def generates(config: RunConfig, show: str) -> bool:
    """Whether a goal for the task is generated (else its scripted expert shows it).

    Args:
        show: `generated`, `expert`, or `auto`: generated in preset tiny where the model that ships knows the view.

    Raises:
        UserError: generated, in a preset whose model does not ship.
    """
    if show == "generated" and config.preset != "tiny":
        raise UserError(
            f"--show generated: no model of preset {config.preset} ships; make a video with `genreward generate` and "
            "the goal of that with --video"
        )
    if show == "auto":
        known = (config.env.camera, config.env.rendering) == (CAMERA, RENDERING)
        return config.preset == "tiny" and known and shipped_generator() is not None
    return show == "generated"


def _require_expert(config: RunConfig, instead: str) -> None:
    if not isinstance(config.env, EnvConfig):
        raise UserError(
            f"{config.env.task}: a task of dm_control, which has no scripted expert to show a goal; pass {instead} "
            "(see docs/distracting_control.md), or train with --reward none"
        )


def evaluate_run(run: Path, episodes: int, envs: int | None, seed: int | None, device: str) -> EvaluatedRun:
    """Evaluates the checkpoint of a run.

    Raises:
        UserError: no run there, a damaged file, or a number below 1.
    """
    check_counts(episodes=episodes, envs=envs)
    if seed is not None:
        check_seed(seed)
    config, agent = load_agent(run, device)
    folder = RunFolder(run)
    seed = config.train.seed if seed is None else seed
    result = evaluate(
        AgentActor(agent, seed),
        config.env,
        episodes=episodes,
        envs=envs or config.train.envs,
        seed=seed,
        video=folder.video,
    )
    assert result is not None
    notes = [f"trained with {config.weights_note}"] if config.weights_note else []
    return EvaluatedRun(config.env.task, result, folder.video, notes)


def check_counts(**counts: int | None) -> None:
    """Raises UserError unless each is at least 1, or not given."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {value}")


class EvaluatedRun(NamedTuple):
    """What `evaluate_run` found, where the video is, and what must be known about the agent."""

    task: str
    result: Evaluation
    video: Path
    notes: list[str]

    def lines(self) -> list[str]:
        """The result as it is printed."""
        result = self.result
        return [
            f"task      {self.task}",
            f"episodes  {result.episodes}",
            f"return    {result.return_mean:.1f} ± {result.return_std:.1f}",
            f"success   {success_text(result.scalars())}",
            f"video     {self.video}",
            *(f"note      {note}" for note in self.notes),
        ]

    def record(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {"task": self.task, **asdict(self.result), "video": str(self.video), "notes": self.notes}


def make_goal(
    config: RunConfig,
    *,
    out: Path,
    task: str | None,
    video: Path | None,
    text: str | None,
    frame: str,
    seed: int,
    overwrite: bool,
    show: str = "auto",
) -> list[str]:
    """Makes a goal and saves it in the folder `out`; the lines to print.

    Raises:
        UserError: neither or both of task and video, a video without a text, or a damaged file.
    """
    if (task is None) == (video is None):
        raise UserError(
            "give either --task (generated, or shown by its scripted expert) or --video FILE together with --text"
        )
    if video is not None and not text:
        raise UserError(f"--video {video}: needs --text, the task in words, to choose the goal frame")
    if task is not None:
        _require_expert(config, "--video FILE together with --text")
    check_seed(seed)
    encoders = Encoders(config.encoders, resolve_device(config.train.device))
    select = frame_choice(frame, encoders)
    if video is not None:
        goal = Goal.from_video(video, str(text), select=select, encoder=encoders.text_image)
    else:
        make = goal_from_generator if generates(config, show) else goal_from_expert
        goal = make(
            config.env.task,
            encoders,
            seed=seed,
            camera=config.env.camera,
            rendering=config.env.rendering,
            text=text,
            select=select,
        )
    goal.save(out, overwrite=overwrite)
    return goal_lines(goal, out)


def frame_choice(frame: str, encoders: Encoders) -> str | int:
    """How the goal frame is chosen: "auto" is OpenCLIP's choice, or the last frame while OpenCLIP is untrained."""
    if frame == "auto":
        return "last" if encoders.note else "clip"
    return int(frame) if frame.removeprefix("-").isdigit() else frame


def goal_lines(goal: Goal, folder: Path) -> list[str]:
    """What a user should know about a goal."""
    frames, height, width, _ = goal.video.shape
    how = {"clip": "chosen by OpenCLIP", "last": "the last one", "index": "as given"}[goal.provenance["select"]]
    lines = [
        f"task    {goal.text}",
        f"video   {frames} frames of {height}×{width} from {goal.provenance['source']}",
        f"frame   {goal.frame_index}, {how}",
    ]
    if goal.scores is not None:
        top = goal.scores.topk(min(3, frames))
        ranked = ", ".join(f"{index} ({score:.3f})" for score, index in zip(top.values.tolist(), top.indices.tolist()))
        lines.append(f"scores  best frames {ranked}; margin over the median {goal.provenance['margin']:+.3f}")
    lines += [f"note    {goal.note}"] if goal.note else []
    return [*lines, f"folder  {folder} (look at {folder / 'contact_sheet.png'})"]


def say(line: str) -> None:
    """Progress goes to the error stream: what a command prints on the other one is its result."""
    print(line, file=sys.stderr, flush=True)
