"""Meta-World's and dm_control's tasks behind one name: `--task pick-place`, `--task walker-walk`."""

from __future__ import annotations

import difflib
import re
from dataclasses import replace

from genreward_fast.envs import control_tasks, tasks
from genreward_fast.envs.control_config import ControlConfig
from genreward_fast.envs.env_config import EnvConfig
from genreward_fast.errors import UserError

AnyEnvConfig = EnvConfig | ControlConfig


def env_config(task: str) -> AnyEnvConfig:
    """The default environment of a task of either suite, given by any of its names.

    Raises:
        UserError: no task is called that; the message names the closest ones of both suites.
    """
    letters = re.sub(r"[^a-z0-9]", "", task.lower())
    if letters in control_tasks.LETTERS:
        return ControlConfig(task)
    without_version = re.sub(r"v[123]$", "", letters)
    if without_version in tasks.LETTERS:
        return EnvConfig(task)
    known = tasks.LETTERS | control_tasks.LETTERS
    close = difflib.get_close_matches(without_version, known, n=3, cutoff=0.5)
    names = [known[name] for name in close] or [*tasks.TASKS, *control_tasks.CONTROL_TASKS]
    hint = f"{'the closest are' if close else 'choose one of'} {', '.join(names)}"
    raise UserError(f"task {task!r}: neither Meta-World nor dm_control has such a task; {hint}")


def with_task(config: AnyEnvConfig, task: str) -> AnyEnvConfig:
    """`config` for another task; its settings are kept within a suite, and that suite's defaults in the other one."""
    other = env_config(task)
    return replace(config, task=other.task) if type(other) is type(config) else other


def named_tasks(names: str) -> tuple[str, ...]:
    """The canonical names of `all` of Meta-World's tasks, of the `paper`'s, or of those of either suite that are named.

    Args:
        names: one of these words, or names separated by commas; one that is given twice counts once.

    Raises:
        UserError: no name is given, or no task is called that.
    """
    if names in ("all", "paper"):
        return tasks.task_list(names)
    found = tuple(dict.fromkeys(env_config(name).task for name in names.split(",") if name.strip()))
    if not found:
        raise UserError("tasks: none is named; pass all, paper, or names separated by commas")
    return found
