"""Demonstrations by Meta-World's scripted experts: clips of tasks being solved, with captions.

Every clip has starts of its own, drawn from seeds that neither training nor evaluation uses, and depends on no other
clip. So a set that was interrupted, or made by more processes, or with more tasks at once, holds the same clips.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import multiprocessing
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import torch

from genreward_fast.envs.env_config import EnvConfig, Rendering
from genreward_fast.envs.expert import expert_episode
from genreward_fast.envs.metaworld_env import MetaWorldEnv
from genreward_fast.envs.seeds import episode_seed
from genreward_fast.envs.tasks import TASKS
from genreward_fast.errors import Interrupted, RunFailed, UserError
from genreward_fast.goals import demo_files
from genreward_fast.goals.captions import captions
from genreward_fast.goals.demo_actions import write_actions
from genreward_fast.goals.progress import progress
from genreward_fast.goals.video_io import write_video

STARTS = 10
"""From how many starts the expert may fail before a clip is given up."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Collection:
    """Which demonstrations to collect.

    Attributes:
        tasks: canonical names.
        episodes: clips of each task.
        camera: one of `CAMERAS`.
        size: side of the square frames in pixels, even.
        rendering: as the agent's environment has it.
        seed: of all starts, not negative.
        fps: frames per second at which the files play; 80 is the simulator's own rate. No frame is left out for it.

    Raises:
        UserError: a value is out of its range.
    """

    tasks: tuple[str, ...]
    episodes: int
    camera: str = "corner"
    size: int = 480
    rendering: Rendering = "fast"
    seed: int = 0
    fps: float = 80.0

    def __post_init__(self) -> None:
        for task in self.tasks:
            self.env(task)  # refuses bad names, cameras and renderings
        if self.episodes < 1:
            raise UserError(f"episodes {self.episodes}: must be at least 1")
        if self.size < 16 or self.size % 2:
            raise UserError(f"size {self.size}: must be even, which video compression needs, and at least 16")
        if self.seed < 0:
            raise UserError(f"seed {self.seed}: must not be negative")
        if not 0 < self.fps <= 1000:
            raise UserError(f"fps {self.fps}: must be above 0, and at most 1000")

    def env(self, task: str) -> EnvConfig:
        return EnvConfig(task, camera=self.camera, rendering=self.rendering)

    def shared(self) -> dict[str, Any]:
        """What all clips of a folder have in common."""
        names = ("camera", "size", "rendering", "seed", "fps")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class _Job:
    collection: Collection
    task: str
    number: int
    folder: Path


def collect(collection: Collection, folder: Path, *, resume: bool = False, workers: int = 1) -> list[str]:
    """Writes the clips that the folder lacks; see `demo_files` for what it then holds.

    Args:
        resume: the folder may hold clips already. They are kept, also those of other tasks.
        workers: processes that collect at once; the clips do not depend on it.

    Returns:
        What to tell the user, line by line.

    Raises:
        UserError: bad values, or a folder that holds something else.
        RunFailed: the disk is full, for example. What was written stays.
        Interrupted: likewise.
    """
    if workers < 1:
        raise UserError(f"workers {workers}: must be at least 1")
    lines = demo_files.start(folder, collection.shared(), resume=resume)
    there = {(line["task"], line["number"]) for line in lines}
    wanted = [(task, number) for task in collection.tasks for number in range(collection.episodes)]
    jobs = [_Job(collection, task, number, folder) for task, number in wanted if (task, number) not in there]
    missing = []
    bar = progress(total=len(wanted), initial=len(wanted) - len(jobs), unit="clip", desc="demonstrations")
    with bar, _stoppable():
        try:
            for job, line in _results(jobs, workers):
                if line is None:
                    missing.append(f"{job.task} {job.number}")
                else:
                    demo_files.append(folder, line)
                    lines.append(line)
                bar.set_postfix_str(job.task, refresh=False)
                bar.update()
        except _Stopped as stop:
            message = f"interrupted after {len(lines)} clips in {folder}; the same command with --resume goes on"
            raise Interrupted(stop.signal_number, message) from None
        except OSError as error:
            raise _unwritten(folder, error) from error
        except BrokenProcessPool as error:
            raise RunFailed(
                f"{folder}: a process died, of too little memory perhaps; go on with --resume and fewer --workers"
            ) from error
    lines.sort(key=lambda line: (TASKS.index(line["task"]), line["number"]))
    demo_files.write(folder, lines)
    report = [f"{folder}: {len(lines)} clips, tasks: {len({line['task'] for line in lines})}"]
    if failed := sum(line.get("failed_starts", 0) for line in lines):
        report.append(f"starts given up because the expert failed from them: {failed}")
    if missing:
        report.append(f"not collected, because the expert failed from {STARTS} starts: {', '.join(missing)}")
    return report


def _results(jobs: Sequence[_Job], workers: int) -> Iterator[tuple[_Job, dict[str, Any] | None]]:
    """Each job with its clip's line, or None if the expert failed; in the order in which they end."""
    if workers == 1:
        try:
            for job in jobs:
                yield job, _collect_clip(job)
        finally:
            _environment.cache_clear()
        return
    context = multiprocessing.get_context("spawn")  # an OpenGL context does not survive a fork
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, initializer=_leave_signals_to_the_parent)
    try:
        futures = {pool.submit(_collect_clip, job): job for job in jobs}
        for future in concurrent.futures.as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _collect_clip(job: _Job) -> dict[str, Any] | None:
    collection = job.collection
    config = collection.env(job.task)
    env = _environment(config)
    for start in range(STARTS):
        seed = episode_seed(collection.seed, "demos", TASKS.index(job.task), job.number * STARTS + start)
        # Frames are most of the cost, so a failure is found out without them; the episode is the same with them.
        if expert_episode(config, seed, (), env=env).first_success is None:
            continue
        try:
            episode = expert_episode(config, seed, (collection.size,), env=env)
        finally:
            env.close()  # an OpenGL context left to the end of a worker process is freed too late, and can block it
        frames = torch.from_numpy(episode.frames[collection.size])
        name = f"{demo_files.CLIPS}/{job.task}-{job.number:04d}"
        file, actions = f"{name}.mp4", f"{name}.safetensors"
        try:
            write_video(job.folder / file, frames, collection.fps)
            write_actions(job.folder / actions, episode.actions)
        except (OSError, av.error.FFmpegError) as error:
            raise _unwritten(job.folder / file, error) from error
        return {
            "file": file,
            "actions": actions,
            "captions": list(captions(job.task)),
            "task": job.task,
            "number": job.number,
            "fps": collection.fps,
            "frames": len(frames),
            "size": collection.size,
            "camera": collection.camera,
            "seed": seed,
            "success_step": episode.first_success,
            "failed_starts": start,
        }
    return None


class _Stopped(BaseException):
    """A signal came. Not an Exception, so that nothing on the way takes it for a failure."""

    def __init__(self, signal_number: int):
        self.signal_number = signal_number


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise _Stopped(number)

    if threading.current_thread() is not threading.main_thread():  # signals go to the main thread alone
        yield
        return
    previous = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@functools.lru_cache(maxsize=1)
def _environment(config: EnvConfig) -> MetaWorldEnv:
    # Making one takes longer than playing an episode, and clips of one task follow each other.
    return MetaWorldEnv(config)


def _unwritten(path: Path, error: Exception) -> RunFailed:
    reason = getattr(error, "strerror", None) or error
    return RunFailed(f"{path}: cannot be written ({reason}); make room, then go on with --resume: what is there stays")


def _leave_signals_to_the_parent() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
