"""Everything that determines a run, as frozen dataclasses, and its file in the run folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cattrs

from genreward_fast.agent.config import AgentConfig
from genreward_fast.encoders.presets import EncoderConfig
from genreward_fast.envs.control_config import ControlConfig
from genreward_fast.envs.env_config import EnvConfig
from genreward_fast.envs.suites import AnyEnvConfig
from genreward_fast.errors import UserError
from genreward_fast.files import read_json, write_json
from genreward_fast.rewards.config import RewardConfig
from genreward_fast.rewards.registry import REWARDS

ENV_REWARDS = ("dense", "sparse", "none")


def check_seed(seed: int) -> None:
    """Raises UserError unless every random generator takes the seed."""
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed must lie between 0 and 2^63 - 1, but is {seed}")


RELEASE_TICKS = 64
"""Steps of every environment: half the paper's window. Three tenths of a GPU encode everybody's windows in less."""


@dataclass(frozen=True)
class TrainConfig:
    """The loop's own settings.

    Attributes:
        steps: environment steps (actions taken, summed over the environments) at which the run ends.
        envs: parallel environments, one worker process each.
        seed: of everything that is drawn; evaluation has seeds of its own.
        device: where the agent, the encoders and the replay live: "auto", "cpu", "cuda" or "cuda:N".
        engine: what runs the encoders: "auto", "torch", a backend of engines, or the path of exported ones.
        minutes: wall time after which training ends, whatever `steps` says, and the last evaluation follows; 0 for no
            limit. Resumed runs count all their processes.
        env_reward: what the environment pays: its "dense" reward, 1 on success ("sparse"), or "none".
        prefill: environment steps with uniformly random actions before the agent acts and learns.
        train_ratio: rows replayed per environment step; updates per step are train_ratio / (batch · length).
        replay_capacity: rows kept.
        release_delay: environment steps between the end of a window and its rows becoming sampleable; None for
            `RELEASE_TICKS` steps of every environment. It is fixed, so that encoding beside the updates changes no
            number, and long enough that nothing waits for it.
        eval_every: environment steps between evaluations; 0 for one at the end only.
        eval_episodes: episodes in an evaluation.
        log_every: agent updates between two readings of the metrics.
        overlap: on CUDA, encode windows, and compute and learn what the frame level needs, on streams beside the
            agent's updates; no number changes.
        overlap_multiprocessors: so many of the GPU's encode the windows then; 0 for all of them, None for three tenths.
        checkpoint_minutes: minutes between checkpoints (0: after every tick of the environments, for tests).
    """

    steps: int = 1_000_000
    envs: int = 16
    seed: int = 0
    device: str = "auto"
    engine: str = "torch"
    minutes: float = 0.0
    env_reward: str = "dense"
    prefill: int = 5000
    train_ratio: float = 512.0
    replay_capacity: int = 1_000_000
    release_delay: int | None = None
    eval_every: int = 10_000
    eval_episodes: int = 10
    log_every: int = 50
    checkpoint_minutes: float = 5.0
    overlap: bool = True
    overlap_multiprocessors: int | None = None

    @property
    def delay(self) -> int:
        """`release_delay`, or what stands for None."""
        return RELEASE_TICKS * self.envs if self.release_delay is None else self.release_delay

    def __post_init__(self) -> None:
        for name, least in [("steps", 1), ("envs", 1), ("eval_episodes", 1), ("log_every", 1), ("replay_capacity", 1)]:
            if getattr(self, name) < least:
                raise UserError(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(self, name)}")
        check_seed(self.seed)
        for name in (
            "prefill", "release_delay", "eval_every", "minutes", "checkpoint_minutes", "overlap_multiprocessors",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value >= 0:  # NaN is refused, too
                raise UserError(f"--{name.replace('_', '-')} must not be negative, but is {value}")
        if not 0 < self.train_ratio < float("inf"):
            raise UserError(f"--train-ratio must be a positive number, not {self.train_ratio}")
        if self.env_reward not in ENV_REWARDS:
            raise UserError(f"--env-reward must be one of {', '.join(ENV_REWARDS)}, not {self.env_reward!r}")


@dataclass(frozen=True)
class RunConfig:
    """A run, resolved: preset and flags are already merged. Saved as `config.json`."""

    preset: str
    env: AnyEnvConfig
    agent: AgentConfig
    reward: RewardConfig
    encoders: EncoderConfig
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        """Checks what concerns several rooms at once."""
        if self.reward.name not in REWARDS:
            raise UserError(f"--reward {self.reward.name}: unknown; use one of {', '.join(sorted(REWARDS))}")
        if self.agent.dtype == "float64":
            raise UserError("--dtype float64 is for checks and not for training; use bfloat16 or float32")
        frames = self.env.steps
        if self.reward.rows > frames:
            window = f"--window {self.reward.rows}" if self.reward.uses_goal else f"the window of {self.reward.rows}"
            lower = "lower --window or " if self.reward.uses_goal else ""
            raise UserError(
                f"{window} is longer than an episode of {frames} steps: no window would ever close; "
                f"{lower}raise --episode-length"
            )
        if self.reward.name == "genreward" and self.reward.use_fb and self.reward.fb_steps <= self.train.prefill:
            raise UserError(
                f"--fb-steps {self.reward.fb_steps}: FB would never learn, since updates begin after the first "
                f"{self.train.prefill} steps (--prefill); raise --fb-steps, or use --no-fb"
            )
        if self.encoders.vae_float8 and self.train.engine != "torch":
            raise UserError(
                f"--vae-float8 together with --engine {self.train.engine}: engines have none; leave one out"
            )
        if self.train.env_reward == "sparse" and not self.env.has_success:
            raise UserError(
                f"--env-reward sparse: {self.env.task} is a task of dm_control, where success is not defined; use "
                "dense or none"
            )
        if self.reward.name == "none" and self.train.env_reward == "none":
            raise UserError("--reward none together with --env-reward none leaves nothing to learn from; change one")

    @property
    def clip_encoders(self) -> EncoderConfig:
        """`encoders` for clips as long as the reward's."""
        return dataclasses.replace(self.encoders, clip_length=self.reward.clip_frames)

    @property
    def weights_note(self) -> str:
        """What every output must say about the weights that the reward is made with; "" if all are trained."""
        if not self.reward.uses_goal or (self.reward.name != "genreward" and self.reward.weights):
            return ""
        return self.encoders.note

    def save(self, path: str | Path) -> None:
        write_json(path, dataclasses.asdict(self))

    @staticmethod
    def load(path: str | Path) -> RunConfig:
        """Reads `config.json`: unknown fields are refused, missing ones take their defaults.

        Raises:
            UserError: the file is missing, damaged, or of another version.
        """
        return structure(read_json(path), RunConfig, str(path))


def structure(value: Any, kind: type, name: str) -> Any:
    """`value` out of JSON as the dataclass `kind`; unknown fields are errors, missing ones take their defaults.

    Raises:
        UserError: names the file and the first field that does not fit.
    """
    converter = cattrs.Converter(forbid_extra_keys=True)

    def environment(env: Any, _: Any) -> AnyEnvConfig:
        if isinstance(env, dict) and "distraction" in env:
            return converter.structure(env, ControlConfig)
        return converter.structure(env, EnvConfig)

    converter.register_structure_hook(AnyEnvConfig, environment)
    try:
        return converter.structure(value, kind)
    except cattrs.BaseValidationError as error:
        reason = cattrs.transform_error(error)[0]
        raise UserError(f"{name}: not a {kind.__name__} of this version: {reason}") from None
