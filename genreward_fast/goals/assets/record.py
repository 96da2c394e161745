"""Episodes of all tasks, recorded by processes side by side: one safetensors file of uint8 frames for each task."""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import os
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from genreward_fast.envs.env_config import EnvConfig
from genreward_fast.envs.expert import ExpertEpisode, expert_episode
from genreward_fast.envs.metaworld_env import MetaWorldEnv
from genreward_fast.envs.seeds import episode_seed
from genreward_fast.envs.tasks import TASKS
from genreward_fast.errors import RunFailed, UserError
from genreward_fast.files import atomic_path
from genreward_fast.goals.assets.plan import BuildFolder, RecordingConfig
from genreward_fast.goals.progress import progress

KINDS = ("expert", "half-expert", "random")
_STARTS = 10  # from how many starts the expert may fail before an episode is given up


@dataclass(frozen=True)
class _Job:
    config: RecordingConfig
    folder: BuildFolder
    task: str


def record(config: RecordingConfig, folder: BuildFolder, workers: int | None = None) -> list[str]:
    """Writes the tasks' recordings that the folder lacks; those that are there are kept.

    Args:
        workers: processes; None for as many as there are cores. The episodes do not depend on it.

    Returns:
        What to tell the user, line by line.

    Raises:
        UserError: workers is below 1.
        RunFailed: a process died.
    """
    workers = workers or len(os.sched_getaffinity(0))
    if workers < 1:
        raise UserError(f"workers {workers}: must be at least 1")
    jobs = [_Job(config, folder, task) for task in config.tasks if not folder.recording(task).exists()]
    bar = progress(total=len(config.tasks), initial=len(config.tasks) - len(jobs), unit="task", desc="data")
    context = multiprocessing.get_context("spawn")  # an OpenGL context does not survive a fork
    pool = concurrent.futures.ProcessPoolExecutor(max(1, min(workers, len(jobs))), context)
    try:
        with bar:
            for future in concurrent.futures.as_completed([pool.submit(_record_task, job) for job in jobs]):
                future.result()
                bar.update()
    except BrokenProcessPool as error:
        raise RunFailed("data: a process died, of too little memory perhaps; try --resume, fewer --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)
    size = sum(folder.recording(task).stat().st_size for task in config.tasks)
    return [f"data: {len(config.tasks)} tasks, {size / 1e9:.2f} GB in {folder.root / 'data'}"]


def _record_task(job: _Job) -> None:
    config, env_config = job.config, EnvConfig(job.task)
    env = MetaWorldEnv(env_config)
    episodes: list[ExpertEpisode] = []
    lines: list[dict[str, Any]] = []
    number = 0
    try:
        for kind, (train, held_out) in zip(KINDS, config.counts(job.task)):
            for index in range(train + held_out):
                episode = _episode(config, env, kind, number)
                number += 1
                if episode is not None:
                    episodes.append(episode)
                    lines.append(_line(config, episode, kind, held_out=index >= train))
    finally:
        env.close()
    if not episodes:
        raise RunFailed(f"{job.task}: nothing could be recorded")
    tensors = {
        f"frames_{size}": np.concatenate([episode.frames[size] for episode in episodes]) for size in config.sizes
    }
    states = [episode.states[:: config.every].astype(np.float32) for episode in episodes]
    tensors["states"] = np.concatenate(states)
    tensors["actions"] = np.concatenate([_actions(episode, config.every) for episode in episodes])
    with atomic_path(job.folder.recording(job.task)) as temporary:
        save_file(tensors, temporary, {"task": job.task, "every": str(config.every), "episodes": json.dumps(lines)})


def _episode(config: RecordingConfig, env: MetaWorldEnv, kind: str, number: int) -> ExpertEpisode | None:
    """The episode, rendered; None if the expert fails from every start. Seeds are those of no training run."""
    task = TASKS.index(env.config.task)
    for start in range(_STARTS):
        seed = episode_seed(config.seed, "demos", task, 1_000_000 + number * _STARTS + start)
        steps, random_from = config.random_steps, 0
        if kind != "random":
            # Frames are most of the cost, so how long it takes is found out without them.
            first = expert_episode(env.config, seed, (), env=env).first_success
            if first is None:
                continue
            steps, random_from = first + 1 + config.after, first + 1 + config.after
            if kind == "half-expert":
                random_from = (first + 1) // 2
        return expert_episode(
            env.config,
            seed,
            config.sizes,
            stop_at_success=False,
            random_from=random_from,
            max_steps=steps,
            render_every=config.every,
            env=env,
        )
    return None


def _actions(episode: ExpertEpisode, every: int) -> np.ndarray:
    """(frames, every, 4) float32: what was done from each recorded frame to the next; zeros behind the last one."""
    frames = len(episode.states[::every])
    actions = np.zeros((frames, every, episode.actions.shape[1]), np.float32)
    actions[:-1] = episode.actions[: (frames - 1) * every].reshape(frames - 1, every, -1)
    return actions


def _line(config: RecordingConfig, episode: ExpertEpisode, kind: str, held_out: bool) -> dict[str, Any]:
    first = episode.first_success
    return {
        "kind": kind,
        "held_out": held_out,
        "seed": episode.seed,
        "frames": len(episode.states[:: config.every]),
        # The first recorded frame at or after the first that counts as solved.
        "solved_from": None if first is None else -(-(first + 1) // config.every),
    }
