"""What `genreward signal` does, from its options on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from signal import SIGINT
from typing import Any

import torch

from genreward_fast.bench.signal.episodes import TaskEpisodes, episodes_of
from genreward_fast.bench.signal.fitted import fitted_weights
from genreward_fast.bench.signal.plan import Plan, in_rows
from genreward_fast.bench.signal.results import Results
from genreward_fast.bench.signal.scoring import episode_returns, learn, ranking, ranking_text
from genreward_fast.encoders.presets import shared_encoders
from genreward_fast.errors import Interrupted, RunFailed, UserError
from genreward_fast.goals.assets.record import record
from genreward_fast.goals.assets.recordings import read_recordings
from genreward_fast.goals.goal import Goal
from genreward_fast.rewards.fitting import FITTERS
from genreward_fast.rewards.registry import make_reward
from genreward_fast.training.device import resolve_device
from genreward_fast.training.settings import RunConfig


def run_signal(
    plan: Plan,
    settings: Callable[[Sequence[str]], RunConfig],
    *,
    resume: bool = False,
    copy: Path | None = None,
    say: Callable[[str], None] = print,
) -> Results:
    """Measures every reward on every task, and writes `signal.json` and `signal.png` in `plan.out` as it goes.

    A reward that cannot be built or measured is a line in the results, and the others go on.

    Args:
        settings: what a command line of `genreward train` asks for.
        resume: keep what the folder holds, recordings and fits included, and measure what is missing.
        copy: of a second JSON file of results; its picture is written beside it.
        say: takes lines about what was done.

    Raises:
        UserError: bad input, or nothing could be measured.
        RunFailed, Interrupted: what was measured stays.
    """
    runs, device = plan.runs(settings), resolve_device(plan.device)
    results = Results(plan.out / "signal.json", plan.settings(), device, resume=resume, copy=copy)
    goals = {} if plan.goals is None else {task: Goal.load(plan.goals / task) for task in plan.tasks}
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # Triton's kernels are launched on the current one
    tasks = _episodes(plan, next(iter(runs.values())), device, resume, say)
    for task in tasks:
        if task.task not in goals:
            goals[task.task] = task.demonstrated_goal()
        results.describe(task.task, _about(task, goals[task.task]))
    try:
        for number, (reward, configs) in enumerate(runs.items(), 1):
            say(f"{reward}, reward {number} of {len(runs)}")
            try:
                for task in tasks:
                    if not results.measured(reward, task.task):
                        began = time.monotonic()
                        figures = _measure(plan, configs[task.task], task, tasks, goals[task.task], device)
                        results.add(reward, task.task, figures | {"seconds": round(time.monotonic() - began, 1)})
                        say(f"{reward}, {task.task}: {ranking_text(figures)}")
            except (UserError, RunFailed) as error:
                results.fail(reward, str(error))
                say(f"{reward}: not measured: {error}")
    except KeyboardInterrupt:
        message = f"{results.path} holds what was measured; the same command with --resume goes on"
        raise Interrupted(SIGINT, message) from None
    if not any(entry["tasks"] for entry in results.values["rewards"].values()):
        raise UserError(f"{results.path}: no reward could be measured; it says why")
    results.save()  # a resumed run may have had nothing to add, and a copy is asked for
    return results


def _episodes(
    plan: Plan, configs: dict[str, RunConfig], device: torch.device, resume: bool, say: Callable[[str], None]
) -> list[TaskEpisodes]:
    """The tasks' episodes, recorded first if that is asked for, with the frames that the encoders take."""
    encoders = next(iter(configs.values())).encoders
    sizes = tuple(sorted({encoders.clip_size, encoders.feature_size}, reverse=True))
    folder = plan.recordings
    if plan.new is not None:
        there = [task for task in plan.tasks if folder.recording(task).exists()]
        if there and not resume:
            raise UserError(
                f"{folder.recording(there[0])}: is there already; keep it with --resume, or name another --out"
            )
        for line in record(plan.new.config(plan.tasks, sizes, plan.limits.seed), folder, plan.new.workers):
            say(line)
    return episodes_of(read_recordings(folder, plan.tasks, sizes, device), plan.tasks, folder.root)


def _about(task: TaskEpisodes, goal: Goal) -> dict[str, Any]:
    """What the results say of a task."""
    return {
        "held_out": {kind: len(episodes) for kind, episodes in task.held_out.items()},
        "training": len(task.training),
        "rows": task.shortest,
        "steps_per_row": task.steps_per_row,
        "goal": {"text": goal.text, "source": Path(goal.provenance.get("source", "")).name, "note": goal.note},
    }


def _measure(
    plan: Plan,
    run: RunConfig,
    task: TaskEpisodes,
    tasks: Sequence[TaskEpisodes],
    goal: Goal,
    device: torch.device,
) -> dict[str, Any]:
    """Builds a reward, lets it learn, and scores the held-out episodes.

    Returns:
        Its AUCs, what each episode was paid, which weights it has, and how many updates what of it had here.
    """
    config = in_rows(run.reward, task.steps_per_row, task.shortest)
    rows = task.shortest // config.window * config.window
    weights = f"given: {Path(config.weights).name}" if config.weights else ""
    updates: dict[str, int] = {}
    if config.name in FITTERS and not config.weights:
        folder, updates = fitted_weights(config.name, task, tasks, plan.out, run.preset, plan.limits, device)
        config, weights = replace(config, weights=folder), "fitted"
    encoders = shared_encoders(replace(run.encoders, clip_length=config.clip_frames), device)
    reward = make_reward(config, goal, encoders, task.action_size, device, run.train.seed)
    if not reward.frozen:
        learn(reward, task, plan.fb_updates, config.pairs, run.train.seed)
        updates = {"FB": plan.fb_updates}
    kinds = task.held_out
    paid = episode_returns(reward, task, [episode for kind in kinds.values() for episode in kind], rows)
    returns = dict(zip(kinds, paid.cpu().split([len(episodes) for episodes in kinds.values()])))
    return {
        **ranking(returns),
        "returns": {kind: values.tolist() for kind, values in returns.items()},
        "weights": weights or getattr(reward, "note", "") or "trained",
        "updates": updates,
    }
