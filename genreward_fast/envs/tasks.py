"""The 50 Meta-World tasks: their names, and what each asks for in one sentence."""

from __future__ import annotations

import difflib
import re

from genreward_fast.errors import UserError

_DESCRIPTIONS = {
    "assembly": "pick up the wrench by its green handle and put its ring over the red peg",
    "basketball": "pick up the basketball and drop it through the hoop",
    "bin-picking": "pick up the green cube from the red bin and place it in the blue bin",
    "box-close": "pick up the lid by its handle and put it on the box",
    "button-press": "push the red button on the front of the box all the way in",
    "button-press-topdown": "press the red button on top of the box all the way down",
    "button-press-topdown-wall": "reach over the wall and press the red button on top of the box all the way down",
    "button-press-wall": "reach around the wall and push the red button on the front of the box all the way in",
    "coffee-button": "push the round button on the front of the coffee machine",
    "coffee-pull": "pull the white mug away from the coffee machine to the green goal",
    "coffee-push": "push the white mug under the spout of the coffee machine",
    "dial-turn": "turn the dial half way round",
    "disassemble": "grasp the wrench by its green handle and lift its ring off the red peg",
    "door-close": "push the open door of the safe until it is shut",
    "door-lock": "turn the lock on the door of the safe clockwise until it is locked",
    "door-open": "pull the door of the safe open by its handle",
    "door-unlock": "turn the lock on the door of the safe counter-clockwise until it is unlocked",
    "drawer-close": "push the open green drawer all the way in",
    "drawer-open": "pull the green drawer open by its handle",
    "faucet-close": "turn the handle of the faucet clockwise until it is closed",
    "faucet-open": "turn the handle of the faucet counter-clockwise until it is open",
    "hammer": "pick up the red hammer and drive the nail into the wooden box with it",
    "hand-insert": "put the gripper down into the hole in the table",
    "handle-press": "press the handle on the box all the way down",
    "handle-press-side": "press the handle on the side of the box all the way down",
    "handle-pull": "pull the handle on the box all the way up",
    "handle-pull-side": "pull the handle on the side of the box all the way up",
    "lever-pull": "pull the lever up until it points straight upwards",
    "peg-insert-side": "pick up the green peg and push it sideways into the hole in the wooden block",
    "peg-unplug-side": "pull the peg sideways out of the hole in the white block",
    "pick-out-of-hole": "lift the red puck out of the hole and hold it at the blue goal",
    "pick-place": "pick up the red puck and hold it at the blue goal",
    "pick-place-wall": "pick up the red puck, lift it over the wall and hold it at the blue goal",
    "plate-slide": "slide the black plate forwards into the net",
    "plate-slide-back": "slide the black plate backwards out of the net",
    "plate-slide-back-side": "slide the black plate sideways out of the net",
    "plate-slide-side": "slide the black plate sideways into the net",
    "push": "push the red puck along the table to the green goal",
    "push-back": "pull the brown block back along the table to the green goal",
    "push-wall": "push the red puck along the table around the wall to the green goal",
    "reach": "move the gripper to the red goal",
    "reach-wall": "move the gripper over the wall to the red goal",
    "shelf-place": "pick up the blue block and place it on the shelf",
    "soccer": "push the ball along the table into the football goal",
    "stick-pull": "pick up the blue stick, put it through the handle of the flask and pull the flask to the green goal",
    "stick-push": "pick up the blue stick and push the flask to the green goal with it",
    "sweep": "sweep the brown block along the table off its edge",
    "sweep-into": "sweep the brown block along the table into the hole",
    "window-close": "slide the window shut by its handle",
    "window-open": "slide the window open by its handle",
}

TASKS: tuple[str, ...] = tuple(_DESCRIPTIONS)
"""Every task's canonical name: lower case, dashes, no version."""

PAPER_TASKS: tuple[str, ...] = ("pick-place", "pick-out-of-hole", "bin-picking", "disassemble", "shelf-place")
"""The Meta-World tasks of the GenReward paper (arXiv 2512.00961)."""

LETTERS = {name.replace("-", ""): name for name in TASKS}
"""A name's letters alone -> the canonical name."""


def canonical(name: str) -> str:
    """The canonical name of a task, which may be given as `pick-place`, `pick-place-v3`, `Pick_Place` or `PickPlace`.

    Raises:
        UserError: no task is called that; the message names the closest ones.
    """
    letters = re.sub(r"[^a-z0-9]", "", name.lower())
    match = LETTERS.get(letters.removesuffix("v3"))
    if match is not None:
        return match
    if letters[-2:] in ("v1", "v2") and letters[:-2] in LETTERS:
        raise UserError(f"task {name!r}: only version 3 of Meta-World is supported; use {LETTERS[letters[:-2]]!r}")
    close = difflib.get_close_matches(letters.removesuffix("v3"), LETTERS, n=3, cutoff=0.5)
    hint = "the closest are " + ", ".join(LETTERS[c] for c in close) if close else "choose one of " + ", ".join(TASKS)
    raise UserError(f"task {name!r}: Meta-World has no such task; {hint}")


def describe(task: str) -> str:
    """What the task asks for, as one imperative sentence without a full stop.

    Raises:
        UserError: no task is called that.
    """
    return _DESCRIPTIONS[canonical(task)]


def task_list(names: str) -> tuple[str, ...]:
    """The canonical names of `all` tasks, of the `paper`'s, or of those named, separated by commas.

    Raises:
        UserError: no name is given, or no task is called that.
    """
    groups = {"all": TASKS, "paper": PAPER_TASKS}
    if names in groups:
        return groups[names]
    tasks = tuple(dict.fromkeys(canonical(name) for name in names.split(",") if name.strip()))
    if not tasks:
        raise UserError("tasks: none is named; pass all, paper, or names separated by commas")
    return tasks
