"""Where the time of an environment step goes, and how many steps a second many workers make.

    python benchmarks/envs/bench_env.py --workers 1 4 16 --json env.json

The parts are medians over single steps in this process; drawing is waited for, so that its time is not counted as
reading's. Where dm_control is installed, what its distractions add is measured, too. Throughput is of whole ticks of a
`VectorEnv` with random actions, resets included.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from genreward_fast.bench.distractions import distraction_parts
from genreward_fast.files import write_json

SIZES = (64, 224, 480)


class IdleEnv:
    """An environment that does nothing: what a step of it costs is the message alone."""

    def reset(self, *, seed: int | None = None) -> None: ...

    def step(self, action: np.ndarray) -> tuple[None, float, bool, bool, dict[str, Any]]:
        return None, 0.0, False, False, {}

    def render_sizes(self, sizes: tuple[int, ...], out: dict[int, np.ndarray]) -> None: ...


@dataclass(frozen=True)
class IdleConfig:
    """It has no settings."""

    action_size: ClassVar[int] = 4


def make_idle() -> IdleEnv:
    return IdleEnv()


def milliseconds(function: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter()
    function(*arguments)
    return 1e3 * (time.perf_counter() - start)


def step_parts(task: str, rendering: Any, steps: int, sizes: tuple[int, ...] = SIZES) -> tuple[str, dict[str, float]]:
    """The name of what renders, and the median milliseconds of each part of a step."""
    from genreward_fast.envs import gl
    from genreward_fast.envs.metaworld_env import EnvConfig, MetaWorldEnv

    env = MetaWorldEnv(EnvConfig(task, rendering=rendering, episode_length=steps + 10))
    resets = [milliseconds(lambda: env.reset(seed=0)) for _ in range(5)]
    renderer = env.renderer
    env.render_sizes(sizes)  # buffers and shaders are made at the first picture
    device = gl.device_name()
    pictures = {size: np.empty((size, size, 3), np.uint8) for size in sizes}
    random = np.random.default_rng(0)
    samples: dict[str, list[float]] = {"reset (once an episode)": resets}

    def draw(size: int) -> None:
        renderer.draw(size)
        renderer.finish()

    def measure(part: str, function: Callable[..., Any], *arguments: Any) -> None:
        samples.setdefault(part, []).append(milliseconds(function, *arguments))

    for _ in range(steps):
        measure("physics and reward", env.step, random.uniform(-1, 1, 4).astype(np.float32))
        measure("scene update", renderer.update)
        for size in sizes:
            measure(f"draw {size}", draw, size)
            measure(f"read back {size}", renderer.read, size, pictures[size])
    env.close()
    return device, {part: statistics.median(times) for part, times in samples.items()}


def ticks(envs: Any, seconds: float) -> list[float]:
    """Seconds of each tick, after warming up."""
    random = np.random.default_rng(0)
    shape = (envs.num_envs, envs.action_size)
    envs.reset()
    for _ in range(5):
        envs.step(random.uniform(-1, 1, shape))
    times: list[float] = []
    while sum(times) < seconds or len(times) < 10:
        action = random.uniform(-1, 1, shape).astype(np.float32)
        start = time.perf_counter()
        envs.step(action)
        times.append(time.perf_counter() - start)
    return times


def schedules() -> dict[str, Callable[[int], tuple[int, ...]]]:
    from genreward_fast.types import FrameSpec

    clip = tuple(int(step) for step in np.linspace(0, 127, 16))
    paper = FrameSpec(window=128, interval=128, feature_size=224, clip_size=480, clip_steps=clip)
    return {
        "no frames": lambda row: (),
        "64": lambda row: (64,),
        "64 + 224": lambda row: (64, 224),
        "64 + 224 + 480 (16 of 128)": lambda row: (64, *paper.sizes_at(row % 256)),
    }


def throughput(task: str, rendering: Any, workers: int, seconds: float) -> list[dict[str, Any]]:
    from genreward_fast.envs.metaworld_env import EnvConfig
    from genreward_fast.envs.vector import VectorEnv

    rows = []
    for frames, sizes_at in schedules().items():
        config = EnvConfig(task, rendering=rendering)
        start = time.perf_counter()
        with VectorEnv(config, workers, seed=0, split="train", sizes=SIZES, sizes_at=sizes_at) as envs:
            envs.reset()
            startup = time.perf_counter() - start
            times = ticks(envs, seconds)
        rows.append(
            {
                "workers": workers,
                "frames": frames,
                "steps_per_second": workers * len(times) / sum(times),
                "median_tick_ms": 1e3 * statistics.median(times),
                "startup_s": startup,
            }
        )
    return rows


def message(workers: int, seconds: float) -> float:
    """Median milliseconds of a tick of environments that do nothing."""
    from genreward_fast.envs.vector import VectorEnv

    options: dict[str, Any] = {
        "seed": 0,
        "split": "train",
        "sizes": SIZES,
        "factory": "genreward_fast.bench.env:make_idle",
    }
    with VectorEnv(IdleConfig(), workers, sizes_at=schedules()["64 + 224"], **options) as envs:
        return 1e3 * statistics.median(ticks(envs, seconds))


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", default="pick-place")
    parser.add_argument("--rendering", choices=("fast", "quality"), default="fast")
    parser.add_argument("--workers", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--steps", type=int, default=100, help="steps over which the parts are measured")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each throughput measurement")
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    options = parser.parse_args(argv)

    renderer, parts = step_parts(options.task, options.rendering, options.steps)
    parts |= distraction_parts(options.rendering, options.steps)
    parts |= {f"message, {n} worker{'s'[: n > 1]}": message(n, min(1.0, options.seconds)) for n in options.workers}
    cpu = f"{os.cpu_count()} × {cpu_name()}"
    print(f"{options.task}, {options.rendering} rendering on {renderer}; {cpu}\n")
    print(f"{'part of a step':<36}{'median ms':>10}")
    for part, value in parts.items():
        print(f"{part:<36}{value:>10.3f}")
    print(f"\n{'workers':>7}  {'frames':<28}{'steps/s':>9}{'tick ms':>9}{'start s':>9}")
    rows = []
    for workers in options.workers:
        for row in throughput(options.task, options.rendering, workers, options.seconds):
            rows.append(row)
            print(
                f"{row['workers']:>7}  {row['frames']:<28}{row['steps_per_second']:>9.0f}"
                f"{row['median_tick_ms']:>9.2f}{row['startup_s']:>9.1f}"
            )
    if options.json:
        report = {
            "benchmark": "env",
            "task": options.task,
            "rendering": options.rendering,
            "backend": os.environ.get("MUJOCO_GL", ""),
            "renderer": renderer,
            "machine": cpu,
            "parts_ms": parts,
            "throughput": rows,
        }
        write_json(options.json, report)


if __name__ == "__main__":
    main()
