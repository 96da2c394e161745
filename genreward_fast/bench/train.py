"""Environment steps per second of training as a whole, what the generated reward adds to it, and where the time goes.

What is measured is the training loop itself, waited for at its ends only. The parts come from the episodes that follow,
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
ALONE, TRACED = "dense reward alone", "FB frozen"
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
    prefill = envs * (rows + 2) + replace(config.train, envs=envs).delay
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

    with run.around_parts(timed):
        seconds, steps = run.seconds(episodes)
    spent[REST] = seconds - sum(spent.values())
    return {part: 1e3 * value / steps for part, value in spent.items()}


def trace(run: Run, target: Path) -> dict[str, float]:
    """Writes a trace of a few ticks in which a window closes; how long they took, and how busy a GPU was."""
    run.before_a_window_closes()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if run.trainer.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    run.wait()
    with run.around_parts(torch.profiler.record_function), torch.profiler.profile(activities=activities) as profiler:
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
            with started(config_of(request, envs, kind), encoders) as started_run:
                speeds.append({"envs": envs, "run": name} | _speed(started_run, request.steps))
                alone = next(row["steps/s"] for row in speeds if (row["envs"], row["run"]) == (envs, ALONE))
                speeds[-1]["overhead %"] = 100 * (alone / speeds[-1]["steps/s"] - 1)
                print(f"  {envs} environments, {name}: {speeds[-1]['steps/s']:.1f} steps/s", flush=True)
                if kind.overlap:
                    parts += [{"envs": envs, "run": name} | row for row in _parts(started_run)]
                if request.trace is not None and name == TRACED and envs == max(request.envs):
                    report["trace"] = trace(started_run, request.trace)
            if target is not None:  # after each: a long measurement may be cut off
                write_json(target, report)
    print(f"\n{table(speeds)}\n\nparts of a step, each waited for:\n{table(parts)}")
    if request.trace is not None:
        print(f"\ntrace of {TRACED_TICKS} ticks in {request.trace}:\n{table([report['trace']])}")
    return report


def _speed(run: Run, wanted: int | None) -> dict[str, Any]:
    seconds, steps = run.seconds(run.episodes(wanted))
    return {"steps": steps, "steps/s": steps / seconds, "ms per step": 1e3 * seconds / steps}


def _parts(run: Run) -> list[dict[str, Any]]:
    spent = parts_of(run, 1)
    whole = sum(spent.values())
    return [{"part": part, "ms per step": value, "%": 100 * value / whole} for part, value in spent.items()]
