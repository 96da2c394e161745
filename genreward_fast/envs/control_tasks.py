"""The tasks of dm_control's suite (Tunyasuvunakool et al. 2020): their names and the sizes of their actions.

They are written down here, so that a name can be checked and a run resolved without dm_control. lqr is left out: its
actions have no bounds.
"""

from __future__ import annotations

import re

from genreward_fast.errors import UserError

_DOMAINS: dict[str, tuple[int, str]] = {
    "acrobot": (1, "swingup swingup_sparse"),
    "ball_in_cup": (2, "catch"),
    "cartpole": (1, "balance balance_sparse swingup swingup_sparse two_poles three_poles"),
    "cheetah": (6, "run"),
    "dog": (38, "stand walk trot run fetch"),
    "finger": (2, "spin turn_easy turn_hard"),
    "fish": (5, "upright swim"),
    "hopper": (4, "stand hop"),
    "humanoid": (21, "stand walk run run_pure_state"),
    "humanoid_CMU": (56, "stand walk run"),
    "manipulator": (5, "bring_ball bring_peg insert_ball insert_peg"),
    "pendulum": (1, "swingup"),
    "point_mass": (2, "easy hard"),
    "quadruped": (12, "walk run escape fetch"),
    "reacher": (2, "easy hard"),
    "stacker": (5, "stack_2 stack_4"),
    "swimmer": (5, "swimmer6 swimmer15"),
    "walker": (6, "stand walk run"),
}
_OTHER_ACTION_SIZES = {"swimmer-swimmer15": 14}

CONTROL_TASKS: tuple[str, ...] = tuple(
    f"{domain}-{task}" for domain, (_, tasks) in _DOMAINS.items() for task in tasks.split()
)
"""Every task's canonical name: DOMAIN-TASK, each as dm_control spells it."""

ACTION_REPEATS = {
    "ball_in_cup-catch": 4,
    "cartpole-swingup": 8,
    "cheetah-run": 4,
    "finger-spin": 2,
    "reacher-easy": 4,
    "walker-walk": 2,
}
"""The six tasks of the Distracting Control Suite (Stone et al. 2021, arXiv 2101.02722), with the action repeats of
PlaNet (Hafner et al. 2019, arXiv 1811.04551)."""

LETTERS = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in CONTROL_TASKS}
"""A name's letters and digits alone -> the canonical name."""


def canonical_control(name: str) -> str:
    """The canonical name of a task, which may be given as `walker-walk`, `walker_walk` or `WalkerWalk`.

    Raises:
        UserError: no task is called that.
    """
    letters = re.sub(r"[^a-z0-9]", "", name.lower())
    if letters not in LETTERS:
        raise UserError(f"task {name!r}: dm_control has no such task; choose one of {', '.join(CONTROL_TASKS)}")
    return LETTERS[letters]


def usual_action_repeat(name: str) -> int:
    """The published action repeat of a task, given by its canonical name; elsewhere DreamerV3's, 2."""
    return ACTION_REPEATS.get(name, 2)


def domain_and_task(name: str) -> tuple[str, str]:
    """The two names under which dm_control knows a canonical one."""
    domain, _, task = name.partition("-")
    return domain, task


def action_size(name: str) -> int:
    """Length of the action of a task, given by its canonical name."""
    return _OTHER_ACTION_SIZES.get(name, _DOMAINS[domain_and_task(name)[0]][0])
