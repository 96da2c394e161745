"""Which runs are seeds of one method, and what the method is called."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from genreward_fast.envs.control_tasks import usual_action_repeat
from genreward_fast.errors import UserError
from genreward_fast.training.report.runs import Run

# Settings that two seeds of one method may differ in.
INCIDENTAL = (
    "env.task", "agent.capture", "train.seed", "train.device", "train.engine", "train.overlap",
    "train.overlap_multiprocessors", "train.steps", "train.minutes", "train.eval_every", "train.eval_episodes",
    "train.log_every", "train.checkpoint_minutes",
)  # fmt: skip
VIDEO_ONLY = ("reward.alpha", "reward.clip_frames", "reward.video_centred")
FB_ONLY = ("reward.beta", "reward.fb")
FITTED = {"diffusion-reward": "reward.diffusion", "viper": "reward.viper"}

Key = tuple[tuple[str, Any], ...]


def by_method(runs: list[Run]) -> dict[str, list[Run]]:
    """The runs of each method, in the order in which the methods first occur.

    Runs are of one method if all that matters of their settings agrees: without what a reward does not use. A method is
    named after its rewards; where that is not enough, after the settings that differ, too.

    Raises:
        UserError: a method has the same task and seed twice; as two seeds they would count as independent.
    """
    groups: dict[Key, list[Run]] = defaultdict(list)
    for run in runs:
        groups[key_of(run)].append(run)
    for group in groups.values():
        seen: dict[tuple[str, int], Run] = {}
        for run in group:
            other = seen.setdefault((run.task, run.seed), run)
            if other is not run:
                raise UserError(
                    f"{other.folder.path} and {run.folder.path} are the same run twice ({run.task}, seed {run.seed}); "
                    "leave one out"
                )
    names = _distinct({key: name_of(dict(key)) for key in groups})
    return {names[key]: group for key, group in groups.items()}


def key_of(run: Run) -> Key:
    """The settings that make the run's method."""
    unused = list(INCIDENTAL)
    if run.settings["reward.name"] != "genreward":
        unused += [*VIDEO_ONLY, *FB_ONLY, "reward.use_video", "reward.use_fb"]
    unused += [settings for reward, settings in FITTED.items() if reward != run.settings["reward.name"]]
    if run.settings["reward.name"] in FITTED:
        unused += ["encoders", "reward.window", "reward.interval", "reward.fb_steps"]
    else:
        unused.append("reward.weights")
    if run.settings["reward.name"] == "none":
        unused += ["encoders", *(name for name in run.settings if name.startswith("reward.") and name != "reward.name")]
    if not run.settings.get("reward.use_video", True):
        unused += VIDEO_ONLY
    if not run.settings.get("reward.video_centred"):  # older runs do not say that they do without
        unused.append("reward.video_centred")
    if not run.settings.get("reward.use_fb", True):
        unused += [*FB_ONLY, "reward.fb_steps"]
    if "env.distraction" in run.settings and run.settings["env.action_repeat"] == usual_action_repeat(run.task):
        unused.append("env.action_repeat")  # each of dm_control's tasks has its own
    kept = {
        name: repr(value) if isinstance(value, list) else value
        for name, value in run.settings.items()
        if not any(name == entry or name.startswith(entry + ".") for entry in unused)
    }
    return tuple(sorted(kept.items()))


def name_of(settings: dict[str, Any]) -> str:
    """ "dense", "sparse + genreward", "genreward without video", ..."""
    parts = [] if settings["train.env_reward"] == "none" else [settings["train.env_reward"]]
    if settings["reward.name"] != "none":
        left_out = [level for level in ("video", "fb") if settings.get(f"reward.use_{level}") is False]
        parts.append(settings["reward.name"] + "".join(f" without {level}" for level in left_out))
    return " + ".join(parts)


def _distinct(names: dict[Key, str]) -> dict[Key, str]:
    """Names that several methods have get the settings in which those differ."""
    result = {}
    for key, name in names.items():
        rivals = [dict(other) for other, its in names.items() if its == name]
        fields = sorted({field for rival in rivals for field in rival})
        differing = [field for field in fields if len({repr(rival.get(field)) for rival in rivals}) > 1]
        values = [f"{field.rpartition('.')[2]} {dict(key).get(field)}" for field in differing]
        result[key] = f"{name} ({', '.join(values)})" if values else name
    return result
