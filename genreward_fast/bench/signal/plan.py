"""What is asked for: rewards with their settings, tasks, episodes, and how long a reward may learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from genreward_fast.bench.signal.fitted import FitLimits
from genreward_fast.envs.env_config import EnvConfig
from genreward_fast.errors import UserError
from genreward_fast.goals.assets.plan import HELD_OUT_TASKS, BuildFolder, RecordingConfig
from genreward_fast.rewards.config import RewardConfig
from genreward_fast.training.settings import RunConfig
from genreward_fast.training.sweep.grid import reward_flags

REWARDS = (
    "genreward", "genreward:no-fb", "genreward:no-video", "roboclip", "diffusion-reward", "viper", "tadpole",
    "video-tadpole",
)  # fmt: skip
_OWN_FLAGS = ("--task", "--reward", "--seed", "--device", "--goal", "--out", "--resume")


@dataclass(frozen=True)
class NewRecordings:
    """What is recorded anew.

    Attributes:
        held_out: episodes of each kind and task that are scored.
        training: expert episodes of each task to learn from; of the other kinds, half as many.
        steps_per_row: environment steps from one recorded frame to the next.
        after: steps for which an expert goes on after its first success; None to the end of an agent's episode.
        workers: processes; None for one a core.
    """

    held_out: int
    training: int = 10
    steps_per_row: int = 1
    after: int | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        for flag, value in (
            ("record", self.held_out), ("training-episodes", self.training), ("every", self.steps_per_row),
        ):  # fmt: skip
            if value < 1:
                raise UserError(f"--{flag} {value}: must be at least 1")
        if self.after is not None and self.after < 0:
            raise UserError(f"--after {self.after}: must not be negative")

    def config(self, tasks: tuple[str, ...], sizes: tuple[int, ...], seed: int) -> RecordingConfig:
        """Half-expert episodes are as long as experts', random ones as an agent's.

        Raises:
            UserError: a task is kept out of all training.
        """
        if barred := [task for task in tasks if task in HELD_OUT_TASKS]:
            raise UserError(
                f"--tasks {barred[0]}: is kept out of all training, so nothing shows its goal; leave it out"
            )
        others = (self.training + 1) // 2
        steps = max(EnvConfig(task).steps for task in tasks)
        held_out = (self.held_out,) * 3
        return RecordingConfig(
            tasks=tasks,
            train=(self.training, others, others),
            held_out=held_out,
            paper_held_out=held_out,
            sizes=sizes,
            every=self.steps_per_row,
            after=steps if self.after is None else self.after,
            random_steps=steps,
            seed=seed,
        )


@dataclass(frozen=True)
class Plan:
    """
    Attributes:
        rewards: each a name with further flags of `genreward train`, as in a sweep: "genreward:no-fb".
        tasks: canonical names.
        out: folder of the results, of what is fitted, and of what is recorded.
        data: folder of `genreward assets build`, whose recordings are used; None to record.
        new: what is recorded; None with `data`.
        goals: folder with a goal's folder for each task, named after it; None for demonstrations.
        flags: further flags of `genreward train` for all rewards.
        fb_updates: of FB, on the training episodes.
        limits: of the rewards that are fitted; their seed is that of everything.
        device: name of the device.
    """

    rewards: tuple[str, ...]
    tasks: tuple[str, ...]
    out: Path
    data: Path | None = None
    new: NewRecordings | None = None
    goals: Path | None = None
    flags: tuple[str, ...] = ()
    fb_updates: int = 2000
    limits: FitLimits = field(default_factory=FitLimits)
    device: str = "auto"

    def __post_init__(self) -> None:
        """
        Raises:
            UserError: not exactly one source of episodes, a flag that belongs to this command, or a bad number.
        """
        if (self.data is None) == (self.new is None):
            raise UserError("give either --data FOLDER (recordings of genreward assets build) or --record N")
        for flag in self.flags:
            if flag.split("=")[0] in _OWN_FLAGS:
                raise UserError(f"{flag}: is set for each reward and task; leave it out after the --")
        if self.fb_updates < 1:
            raise UserError(f"--fb-updates {self.fb_updates}: must be at least 1")
        if not self.rewards:
            raise UserError("--rewards: names nothing; name one, or several separated by commas")

    @property
    def recordings(self) -> BuildFolder:
        return BuildFolder(self.data or self.out)

    def settings(self) -> dict[str, Any]:
        """What a resumed run must have in common with this one, as JSON. Rewards may be added."""
        new = None if self.new is None else {k: v for k, v in asdict(self.new).items() if k != "workers"}
        goals = "demonstrations" if self.goals is None else "given"
        learning = {"fb_updates": self.fb_updates, "fit": asdict(self.limits)}
        return {"tasks": list(self.tasks), "recorded": new, "goals": goals, "flags": list(self.flags), **learning}

    def runs(self, settings: Callable[[Sequence[str]], RunConfig]) -> dict[str, dict[str, RunConfig]]:
        """Reward -> task -> what `genreward train` would make of it.

        Args:
            settings: what a command line of `genreward train` asks for; raises UserError if it is bad.

        Raises:
            UserError: an unknown reward, a bad flag, one that pays nothing, or other environments than the recorded.
        """
        runs: dict[str, dict[str, RunConfig]] = {}
        for reward in self.rewards:
            for task in self.tasks:
                flags = [*self.flags, "--task", task, *reward_flags(reward), "--seed", str(self.limits.seed)]
                run = settings(flags)
                if run.reward.name == "none":
                    raise UserError("--rewards none: pays nothing, so there is nothing to measure; leave it out")
                if run.env != EnvConfig(task):
                    raise UserError(
                        "the episodes are recorded with the environment's default settings; leave camera, rendering, "
                        "episode length and action repeat out"
                    )
                runs.setdefault(reward, {})[task] = run
        return runs


def in_rows(config: RewardConfig, steps_per_row: int, shortest: int) -> RewardConfig:
    """A reward's settings for recorded rows instead of steps.

    Its windows cover as many steps, or all rows of the shortest episode if those are fewer. A bonus for new frames is
    left out: it is for exploring, and would pay what is rare.
    """
    window = min(max(1, config.window // steps_per_row), shortest)
    return replace(
        config,
        window=window,
        interval=min(max(1, config.interval // steps_per_row), window),
        roboclip=replace(config.roboclip, every=max(1, config.roboclip.every // steps_per_row)),
        diffusion=replace(config.diffusion, exploration=0.0),
        viper=replace(config.viper, exploration=0.0),
    )
