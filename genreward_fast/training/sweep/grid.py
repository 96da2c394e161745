"""Which runs a sweep is made of, and the flags of `genreward train` that each of them gets."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from genreward_fast.envs.suites import named_tasks
from genreward_fast.errors import UserError
from genreward_fast.goals.goal import Goal
from genreward_fast.training.settings import RunConfig

# Flags that the sweep gives to each trial itself, and what to use instead of them.
OWN_FLAGS = {
    "task": "--tasks", "reward": "--rewards", "env-reward": "--env-rewards", "seed": "--seeds", "out": "--out",
    "resume": "--resume before the --",
}  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """What a sweep crosses. Two commands with equal grids continue one another.

    Attributes:
        tasks: canonical names.
        rewards: each a name with further flags of `genreward train`, "genreward:no-video:alpha=3.0" (`reward_flags`).
        env_rewards: what the environment pays. A reward that names its own env-reward is not crossed with them.
        seeds: of the runs.
        goals: folder with a goal's folder for each task, named after it; None leaves goals to `genreward train`.
        flags: further flags of `genreward train`, for all runs.
    """

    tasks: tuple[str, ...] = ("pick-place",)
    rewards: tuple[str, ...] = ("genreward",)
    env_rewards: tuple[str, ...] = ("dense",)
    seeds: tuple[int, ...] = (0,)
    goals: str | None = None
    flags: tuple[str, ...] = ()

    def require_same(self, given: dict[str, Any]) -> None:
        """Raises UserError if a part that is given differs from this grid's; their order does not matter."""
        for name, mine in asdict(self).items():
            if name not in given:
                continue
            same = given[name] == mine if name in ("flags", "goals") else sorted(given[name]) == sorted(mine)
            if not same:
                flag = "--" if name == "flags" else f"--{name.replace('_', '-')}"
                raise UserError(
                    f"{flag} {_text(name, given[name])}: this sweep was started with {_text(name, mine)}; leave it out "
                    "to resume, or name another --out"
                )


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        name: of its folder and its log file.
        task, env_reward, reward, seed: its place in the grid.
        arguments: of `genreward train`, without --out and --resume.
        config: what they ask for.
    """

    name: str
    task: str
    env_reward: str
    reward: str
    seed: int
    arguments: tuple[str, ...]
    config: RunConfig


def parse_grid(flags: Sequence[str] = (), goals: Path | None = None, **lists: str | None) -> dict[str, Any]:
    """The parts of a grid that are given, out of what stands on a command line.

    Args:
        lists: tasks, rewards, env_rewards and seeds, each separated by commas.

    Raises:
        UserError: an unknown task, an empty list, something given twice, or a seed that is no number.
    """
    parsed: dict[str, Any] = {}
    for name in ("tasks", "rewards", "env_rewards", "seeds"):
        if (text := lists.get(name)) is not None:
            parsed[name] = named_tasks(text) if name == "tasks" else _list(name.replace("_", "-"), text)
    if "seeds" in parsed:
        for seed in parsed["seeds"]:
            if not seed.isdecimal():
                raise UserError(f"--seeds {seed}: not a seed; name whole numbers, separated by commas")
        parsed["seeds"] = tuple(int(seed) for seed in parsed["seeds"])
        _require_distinct("seeds", parsed["seeds"])
    if goals is not None:
        parsed["goals"] = str(goals.absolute())
    if flags:
        parsed["flags"] = tuple(flags)
    return parsed


def trials_of(grid: Grid, settings: Callable[[Sequence[str]], RunConfig]) -> list[Trial]:
    """All runs of the grid, the first seed's of everything before the second's.

    Args:
        settings: what a command line of `genreward train` asks for; raises UserError if it is bad.

    Raises:
        UserError: a trial's flags are bad, two trials are the same run, or a task has no goal.
    """
    _refuse_own_flags(grid.flags, list(OWN_FLAGS))
    if len(grid.tasks) > 1 and any(flag.split("=")[0] == "--goal" for flag in grid.flags):
        raise UserError("--goal: one goal for several tasks; name a folder with one for each of them with --goals")
    if grid.goals is not None:
        for task in grid.tasks:
            Goal.load(Path(grid.goals) / task)
    trials: list[Trial] = []
    for seed in grid.seeds:
        for task in grid.tasks:
            for reward in grid.rewards:
                trials += _trials_at(grid, task, reward, seed, settings)
    seen: dict[Any, Trial] = {}
    for trial in trials:
        for key in (trial.name, repr(trial.config)):
            other = seen.setdefault(key, trial)
            if other is not trial:
                raise UserError(
                    f"--rewards {other.reward} and {trial.reward} with env-reward {trial.env_reward} are the same run "
                    f"twice ({trial.task}, seed {trial.seed}); leave one out"
                )
    return trials


def reward_flags(reward: str) -> list[str]:
    """ "genreward:no-video:alpha=3.0" as --reward genreward --no-video --alpha=3.0.

    Raises:
        UserError: it has no name, or one of the flags is the sweep's own.
    """
    name, *options = (part.strip() for part in reward.split(":"))
    if not name or not all(options):
        raise UserError(f"--rewards {reward}: write NAME, NAME:FLAG or NAME:FLAG=VALUE, as genreward:no-video:alpha=3")
    flags = [f"--{option}" for option in options]
    _refuse_own_flags(flags, [flag for flag in OWN_FLAGS if flag != "env-reward"])
    return ["--reward", name, *flags]


def _trials_at(
    grid: Grid, task: str, reward: str, seed: int, settings: Callable[[Sequence[str]], RunConfig]
) -> list[Trial]:
    flags = reward_flags(reward)
    names_its_own = any(flag.split("=")[0] == "--env-reward" for flag in flags)
    goal = ["--goal", str(Path(grid.goals) / task)] if grid.goals is not None else []
    trials = []
    for env_reward in [None] if names_its_own else grid.env_rewards:
        crossed = [] if env_reward is None else ["--env-reward", env_reward]
        arguments = [*grid.flags, *goal, "--task", task, *crossed, *flags, "--seed", str(seed)]
        config = settings(arguments)
        if config.train.device.startswith("cuda:"):
            raise UserError(
                f"--device {config.train.device}: the sweep gives each trial its GPU; use cuda, or leave it out"
            )
        pays = config.train.env_reward
        label = ":".join(part for part in reward.split(":") if part.split("=")[0] != "env-reward")
        name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{task}-{pays}-{label}-seed{seed}")
        trials.append(Trial(name, task, pays, label, seed, tuple(arguments), config))
    return trials


def _list(name: str, text: str) -> tuple[str, ...]:
    values = tuple(part.strip() for part in text.split(",") if part.strip())
    if not values:
        raise UserError(f"--{name}: names nothing; name one, or several separated by commas")
    _require_distinct(name, values)
    return values


def _require_distinct(name: str, values: Sequence[Any]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"--{name} names {value} twice; every run is made once")


def _refuse_own_flags(flags: Sequence[str], names: Sequence[str]) -> None:
    for flag in flags:
        name = flag.split("=")[0].removeprefix("--")
        if flag.startswith("--") and name in names:
            raise UserError(f"--{name}: the sweep gives it to each run itself; use {OWN_FLAGS[name]}")


def _text(name: str, value: Any) -> str:
    """A part of a grid as it stands on a command line."""
    if name == "goals":
        return value or "none"
    return (" " if name == "flags" else ",").join(str(part) for part in value) or "none"
