"""Does the agent learn? Trains from pixels with the dense reward alone, for a limited time, and evaluates.

    python benchmarks/training/learn.py --task reach-v3 --minutes 7

The minutes count from the process's start and include the last evaluation. Writes learn_TASK.json and learn_TASK.png
into benchmarks/results/: settings, the curve of the training episodes, the evaluation. Training ends early once its
episodes succeed reliably.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from genreward_fast.bench.timing import code_version
from genreward_fast.config import Overrides, resolve
from genreward_fast.errors import RunFailed, UserError
from genreward_fast.files import atomic_path, write_json
from genreward_fast.training.start import start_run
from genreward_fast.training.trainer import Trainer

RESULTS = Path(__file__).resolve().parent.parent / "results"
RECENT, STABLE = 20, 100
"""Training episodes that a point of the curve is the mean of, and that must succeed for an early end."""


def seconds_since_start() -> float:
    """Of this process, imports included."""
    with open("/proc/self/stat") as file:
        ticks = float(file.read().rpartition(")")[2].split()[19])
    with open("/proc/uptime") as file:
        return float(file.read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")


class Watch:
    """Notes the curve while training goes on, and says when to end it."""

    def __init__(self, deadline: float, stable: float | None):
        """
        Args:
            deadline: seconds since the process's start at which the last evaluation must begin.
            stable: rate of success of the last episodes that is enough; None to go on until the deadline.
        """
        self.deadline, self.stable = deadline, stable
        self.curve: list[dict[str, float]] = []
        self.reason = "steps"
        self._episodes = 0

    def __call__(self, trainer: Trainer) -> bool:
        rollout = trainer.rollout
        if rollout.episode_count > self._episodes:
            self._episodes = rollout.episode_count
            recent = list(rollout.episodes)[-RECENT:]
            self.curve.append(
                {
                    "steps": rollout.env_steps,
                    "updates": trainer.counters.updates,
                    "seconds": seconds_since_start(),
                    "episodes": rollout.episode_count,
                    "success": sum(success for _, success, _ in recent) / len(recent),
                    "return": sum(total for total, _, _ in recent) / len(recent),
                }
            )
        last = list(rollout.episodes)[-STABLE:]
        if self.stable is not None and len(last) == STABLE and trainer.counters.updates > 0:
            rate = sum(success for _, success, _ in last) / STABLE
            if rate >= self.stable:
                self.reason = f"success in {rate:.0%} of the last {STABLE} training episodes"
                return True
        if seconds_since_start() >= self.deadline:
            self.reason = "time"
            return True
        return False


def draw(result: dict[str, Any], path: Path) -> None:
    """Success and return of the training episodes over minutes, and the evaluation, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    minutes = [point["seconds"] / 60 for point in result["curve"]]
    evaluation, end = result["evaluation"], result["seconds"] / 60
    rate, low, high = evaluation["success"], evaluation["success_low"], evaluation["success_high"]
    for axis, name, color in zip(figure.subplots(1, 2), ("success", "return"), ("#2a6fbb", "#2f9e60")):
        axis.plot(minutes, [point[name] for point in result["curve"]], color=color, label="training, last 20 episodes")
        if name == "success":
            error = [[rate - low], [high - rate]]
            label = f"evaluation, {evaluation['episodes']:.0f} episodes, 95% interval"
            axis.errorbar([end], [rate], error, fmt="o", color="#d9822b", capsize=3, label=label)
            axis.set_ylim(-0.03, 1.03)
        else:
            deviation = evaluation["return_std"]
            axis.errorbar([end], [evaluation["return_mean"]], [deviation], fmt="o", color="#d9822b", capsize=3)
        axis.set_title("success rate" if name == "success" else "episode return", loc="left", fontsize=10)
        axis.set_xlabel("minutes since the process's start", fontsize=8)
        axis.set_xlim(left=0)
        axis.grid(color="#d8dee4", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        if name == "success":
            axis.legend(fontsize=7, frameon=False, loc="best")
    title = f"{result['config']['env']['task']} from pixels, dense reward, size {result['config']['agent']['size']}"
    figure.suptitle(f"{title}, {result['device']}", fontsize=10, x=0.01, ha="left")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", default="reach-v3")
    parser.add_argument("--minutes", type=float, default=7.0, help="from the process's start to the written result")
    parser.add_argument("--reserve", type=float, default=30.0, help="seconds of them for the last evaluation")
    parser.add_argument("--steps", type=int, default=10_000_000, help="environment steps at most")
    parser.add_argument("--size", default="12M")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--envs", type=int, default=16)
    parser.add_argument("--train-ratio", type=float, default=512.0)
    parser.add_argument("--prefill", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--batch-length", type=int, default=64)
    parser.add_argument("--action-repeat", type=int, default=1)
    parser.add_argument("--episode-length", type=int, help="[default: the preset's]")
    parser.add_argument("--camera", help="[default: the preset's]")
    parser.add_argument("--replay-capacity", type=int, default=200_000)
    parser.add_argument("--eval-episodes", type=int, default=20)
    parser.add_argument("--stable", type=float, default=0.95, help="rate of success that ends training; 0 for none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--commit", default=code_version(Path(__file__).parent), help="whose code it is  [default: this checkout's]"
    )
    parser.add_argument("--out", type=Path, help="run folder  [default: a temporary one]")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON and the PNG")
    return parser.parse_args(arguments)


FLAGS = (
    "task", "steps", "size", "dtype", "device", "envs", "train_ratio", "prefill", "batch_size", "batch_length",
    "action_repeat", "episode_length", "camera", "replay_capacity", "eval_episodes", "seed",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    flags = {name: getattr(options, name) for name in FLAGS}
    watch = Watch(60 * options.minutes - options.reserve, options.stable or None)
    try:
        config = resolve(
            "paper",
            Overrides(**flags, reward="none", env_reward="dense", eval_every=0, checkpoint_minutes=1e6),
        )
        with tempfile.TemporaryDirectory() as temporary:
            out = options.out or Path(temporary) / "run"
            summary = start_run(config, out, goal=None, resume=False, stop=watch)
    except (UserError, RunFailed) as error:
        print(f"learn: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    result = {
        "task": config.env.task,
        "device": summary.device,
        "torch": torch.__version__,
        "commit": options.commit,
        "when": time.strftime("%Y-%m-%d", time.gmtime()),
        "seconds": seconds_since_start(),
        "training seconds": summary.seconds,
        "ended by": watch.reason,
        "env_steps": summary.env_steps,
        "updates": summary.updates,
        "evaluation": summary.evaluation,
        "curve": watch.curve,
        "config": asdict(config),
    }
    target = options.results / f"learn_{config.env.task}.json"
    write_json(target, result)
    draw(result, target.with_suffix(".png"))
    print("\n".join(summary.lines()))
    print(f"ended by {watch.reason}, {result['seconds']:.0f} s from the process's start; everything is in {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
