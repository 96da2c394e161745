"""Environment steps per second of training as a whole, what the generated reward adds to it, and where the time goes.

Measured runs are the training loop itself and are waited for at their ends only. The parts come from a run of its own,
in which each is waited for before and after and nothing overlaps: they say what costs how much, not what hides what.
"""

from __future__ import annotations

import functools
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from genreward_fast.bench.timeline import read_timeline
from genreward_fast.bench.timing import device_name, table
from genreward_fast.encoders.presets import Encoders
from genreward_fast.envs.env_config import ACTION_SIZE
from genreward_fast.errors import UserError
from genreward_fast.files import atomic_path, write_json
from genreward_fast.goals.goal import Goal
from genreward_fast.rewards.genreward import GenReward
from genreward_fast.rewards.registry import make_reward
from genreward_fast.training.settings import RunConfig
from genreward_fast.training.trainer import Trainer

ENVS = (1, 4, 16)
PARTS = ("env wait", "act", "feature encode", "clip encode", "FB score", "FB update", "agent updates")
REST = "host and the rest"
ALONE = "dense reward alone"
TRACED_TICKS = 4
_NEVER = 10**12  # environment steps


@dataclass(frozen=True)
class Kind:
    """A kind of run: its reward, whether FB still learns, and whether windows are encoded beside the updates."""

    reward: str
    learns: bool = False
    overlap: bool = True


KINDS = {
    ALONE: Kind("none"),
    "FB learns": Kind("genreward", learns=True),
    "FB frozen": Kind("genreward"),
    "FB frozen, no overlap": Kind("genreward", overlap=False),
}


@dataclass(frozen=True)
class Request:
    """What is measured.

    Attributes:
        config: the run's settings; those that a kind of run needs are replaced.
        envs: numbers of environments.
        steps: environment steps to measure, rounded up to whole episodes of all environments; None for one of each.
        trace: where a profiler's trace of a few ticks around a window's end is written, if anywhere; of the run with
            the most environments and FB frozen.
    """

    config: RunConfig
    envs: tuple[int, ...] = ENVS
    steps: int | None = None
    trace: Path | None = None


def config_of(request: Request, envs: int, kind: Kind) -> RunConfig:
    """The settings of a run: it begins to learn as soon as rows have been released, and is never interrupted."""
    config = request.config
    rows = max(config.reward.window, config.agent.batch_length + config.agent.context)
    prefill = envs * (rows + 2) + config.train.release_delay
    train = replace(
        config.train,
        envs=envs,
        steps=_NEVER,
        eval_every=0,
        prefill=prefill,
        replay_capacity=max(50_000, 4 * prefill),
        env_reward="dense",
        overlap=kind.overlap,
    )
    reward = replace(config.reward, name=kind.reward, fb_steps=_NEVER if kind.learns else prefill + 1)
    return replace(config, train=train, reward=reward)


class Run:
    """A training run that has recorded its graphs and, if it is to be, frozen FB. Use as a context manager."""

    def __init__(self, config: RunConfig, encoders: Encoders, folder: Path):
        goal = None
        if config.reward.name != "none":
            frames = config.reward.clip_frames
            shape = (frames, config.encoders.clip_size, config.encoders.clip_size, 3)
            goal = Goal("noise", torch.randint(0, 256, shape, dtype=torch.uint8), frames - 1)
        self.reward = make_reward(config.reward, goal, encoders, ACTION_SIZE, encoders.device, config.train.seed)
        self.trainer = Trainer(config, folder, self.reward)
        self.episode = config.env.steps + 1  # ticks; the first of them resets
        self.window = config.reward.window
        self._ticks = 0
        try:
            while self.trainer.counters.updates < 4:
                self.tick()
        except BaseException:
            self.trainer.__exit__()
            raise

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.trainer.__exit__()

    def tick(self) -> None:
        self.trainer.tick()
        self._ticks += 1

    def wait(self) -> None:
        if self.trainer.device.type == "cuda":
            torch.cuda.synchronize(self.trainer.device)

    def episodes(self, steps: int | None) -> int:
        """How many of every environment make up `steps`."""
        each = self.trainer.config.train.envs * (self.episode - 1)
        return 1 if steps is None else -(-steps // each)

    def seconds(self, episodes: int) -> tuple[float, int]:
        """Wall time of `episodes` of every environment, and the environment steps in it; windows close in all."""
        before = self.trainer.rollout.env_steps
        self.wait()
        begin = time.perf_counter()
        for _ in range(episodes * self.episode):
            self.tick()
        self.wait()
        return time.perf_counter() - begin, self.trainer.rollout.env_steps - before

    def before_a_window_closes(self) -> None:
        """Ticks until the next one is the last before a window closes."""
        while self._ticks % self.episode != self.window - 1:
            self.tick()

    def around_parts(self, around: Callable[[str], AbstractContextManager[None]]) -> None:
        """Every part runs inside `around(name of the part)` from now on."""
        trainer, reward = self.trainer, self.reward
        places: list[tuple[Any, str, str]] = [
            (trainer.envs, "receive", "env wait"),
            (trainer.agent, "act", "act"),
            (trainer.agent, "update_from", "agent updates"),
        ]
        if isinstance(reward, GenReward):
            places += [(reward, "features", "feature encode"), (reward, "update", "FB update")]
            places += [(reward.video_level, "score", "clip encode"), (reward.frame_level, "score", "FB score")]
        for owner, name, part in places:
            setattr(owner, name, _inside(around, part, getattr(owner, name)))


def _inside(
    around: Callable[[str], AbstractContextManager[None]], part: str, function: Callable[..., Any]
) -> Callable[..., Any]:
    @functools.wraps(function)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with around(part):
            return function(*args, **kwargs)

    return inside


def parts_of(run: Run, episodes: int) -> dict[str, float]:
    """Milliseconds of an environment step by part, each waited for."""
    spent = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def timed(part: str) -> Iterator[None]:
        run.wait()
        begin = time.perf_counter()
        yield
        run.wait()
        spent[part] += time.perf_counter() - begin

    run.around_parts(timed)
    seconds, steps = run.seconds(episodes)
    spent[REST] = seconds - sum(spent.values())
    return {part: 1e3 * value / steps for part, value in spent.items()}


def trace(run: Run, target: Path) -> dict[str, float]:
    """Writes a trace of a few ticks in which a window closes; how long they took, and how busy a GPU was."""
    run.around_parts(torch.profiler.record_function)
    run.before_a_window_closes()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if run.trainer.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    run.wait()
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(TRACED_TICKS):
            run.tick()
        run.wait()
    with atomic_path(target) as temporary:
        profiler.export_chrome_trace(str(temporary))
    timeline = read_timeline(target, PARTS)
    return {"ms": timeline.length} | ({"GPU busy %": 100 * timeline.busy} if timeline.streams else {})


def run(request: Request, target: Path | None) -> dict[str, Any]:
    """Measures, prints tables, and writes the same as JSON to `target`.

    Raises:
        UserError: a number below 1, or weights that cannot be loaded.
    """
    if request.steps is not None and request.steps < 1:
        raise UserError(f"--steps must be at least 1, not {request.steps}")
    if request.trace is not None and request.trace.suffix != ".json":
        raise UserError(f"--trace {request.trace}: the name of a trace must end in .json")
    device = torch.device(request.config.train.device)
    encoders = Encoders(request.config.encoders, device)
    speeds: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    report: dict[str, Any] = {
        "benchmark": "train",
        "preset": request.config.preset,
        "note": encoders.note,
        "device": device_name(device),
        "torch": torch.__version__,
        "train_ratio": request.config.train.train_ratio,
        "speeds": speeds,
        "parts": parts,
    }
    note = f" ({encoders.note})" if encoders.note else ""
    print(
        f"training, preset {request.config.preset}{note} on {report['device']}, torch {torch.__version__}", flush=True
    )
    for envs in request.envs:
        for name, kind in KINDS.items():
            speeds.append(_speed(request, envs, name, kind, encoders))
            alone = next(row["steps/s"] for row in speeds if (row["envs"], row["run"]) == (envs, ALONE))
            speeds[-1]["overhead %"] = 100 * (alone / speeds[-1]["steps/s"] - 1)
            print(f"  {envs} environments, {name}: {speeds[-1]['steps/s']:.1f} steps/s", flush=True)
            if kind.overlap:
                parts += _parts(request, envs, name, kind, encoders)
    print(f"\n{table(speeds)}\n\nparts of a step, each waited for:\n{table(parts)}")
    if request.trace is not None:
        with _started(request, max(request.envs), KINDS["FB frozen"], encoders) as traced:
            report["trace"] = trace(traced, request.trace)
        print(f"\ntrace of {TRACED_TICKS} ticks in {request.trace}:")
        print(table([report["trace"]]))
    if target is not None:
        write_json(target, report)
    return report


@contextmanager
def _started(request: Request, envs: int, kind: Kind, encoders: Encoders) -> Iterator[Run]:
    config = config_of(request, envs, kind)
    with tempfile.TemporaryDirectory() as folder, Run(config, encoders, Path(folder)) as started:
        yield started
    del started
    gc.collect()  # an agent holds itself; its memory is wanted for the next one
    if encoders.device.type == "cuda":
        torch.cuda.empty_cache()


def _speed(request: Request, envs: int, name: str, kind: Kind, encoders: Encoders) -> dict[str, Any]:
    with _started(request, envs, kind, encoders) as started:
        seconds, steps = started.seconds(started.episodes(request.steps))
    speed = steps / seconds
    return {"envs": envs, "run": name, "steps": steps, "steps/s": speed, "ms per step": 1e3 / speed}


def _parts(request: Request, envs: int, name: str, kind: Kind, encoders: Encoders) -> list[dict[str, Any]]:
    with _started(request, envs, replace(kind, overlap=False), encoders) as started:
        spent = parts_of(started, 1)
    whole = sum(spent.values())
    return [
        {"envs": envs, "run": name, "part": part, "ms per step": value, "%": 100 * value / whole}
        for part, value in spent.items()
    ]
