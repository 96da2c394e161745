"""Environment steps per second of training as a whole, what the generated reward adds to it, and where the time goes.

Measured runs are the training loop itself and are waited for at their ends only. The parts come from a run of its own,
in which each is waited for before and after and nothing overlaps: they say what costs how much, not what hides what.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from genreward_fast.bench.timeline import read_timeline
from genreward_fast.bench.timing import device_name, table
from genreward_fast.bench.training_run import PARTS, Run, started
from genreward_fast.encoders.presets import Encoders
from genreward_fast.errors import UserError
from genreward_fast.files import atomic_path, write_json
from genreward_fast.training.settings import RunConfig

ENVS = (1, 4, 16)
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
        # Loaded before anything is measured, so that weights that are missing are missed at once.
        "encoders": {"vae": encoders.video.fingerprint, "dino": encoders.image.fingerprint},
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
        with started(config_of(request, max(request.envs), KINDS["FB frozen"]), encoders) as traced:
            report["trace"] = trace(traced, request.trace)
        print(f"\ntrace of {TRACED_TICKS} ticks in {request.trace}:")
        print(table([report["trace"]]))
    if target is not None:
        write_json(target, report)
    return report


def _speed(request: Request, envs: int, name: str, kind: Kind, encoders: Encoders) -> dict[str, Any]:
    with started(config_of(request, envs, kind), encoders) as run:
        seconds, steps = run.seconds(run.episodes(request.steps))
    speed = steps / seconds
    return {"envs": envs, "run": name, "steps": steps, "steps/s": speed, "ms per step": 1e3 / speed}


def _parts(request: Request, envs: int, name: str, kind: Kind, encoders: Encoders) -> list[dict[str, Any]]:
    with started(config_of(request, envs, replace(kind, overlap=False)), encoders) as run:
        spent = parts_of(run, 1)
    whole = sum(spent.values())
    return [
        {"envs": envs, "run": name, "part": part, "ms per step": value, "%": 100 * value / whole}
        for part, value in spent.items()
    ]
