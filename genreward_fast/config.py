"""The presets, and how flags change them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from genreward_fast.agent.config import AgentConfig
from genreward_fast.encoders.presets import EncoderConfig
from genreward_fast.envs.control_config import ControlConfig
from genreward_fast.envs.env_config import EnvConfig
from genreward_fast.envs.suites import AnyEnvConfig, env_config, with_task
from genreward_fast.errors import UserError
from genreward_fast.rewards.config import FBConfig, RewardConfig
from genreward_fast.training.run_folder import RunFolder
from genreward_fast.training.settings import RunConfig, TrainConfig

DEFAULT_TASK = "pick-place"


def paper(task: str) -> RunConfig:
    """The paper's setting (arXiv 2512.00961): window 128, 16 frames of 480×480, FB for 100k of 1M steps.

    What differs, and why, is in docs/differences.md: α and β are larger, because the released 0.01 and 1e-5 change
    almost nothing next to the dense return; 16 environments instead of 1; credit spread over the rows.
    """
    env = env_config(task)
    return RunConfig(
        preset="paper",
        env=env,
        agent=AgentConfig(size="12M", dtype="bfloat16"),
        reward=_filling(RewardConfig(), env),
        encoders=EncoderConfig(preset="paper"),
        train=TrainConfig(),
    )


def tiny(task: str) -> RunConfig:
    """The same path on two CPU cores within a quarter of an hour: small networks, few steps."""
    env = env_config(task)
    return RunConfig(
        preset="tiny",
        env=env,
        # A few hundred updates: a small network bears a larger learning rate, and the warm-up must end within them.
        agent=AgentConfig(size="tiny", dtype="float32", batch_size=8, batch_length=32, lr=3e-4, warmup=50),
        reward=_filling(RewardConfig(fb_steps=2500, fb=FBConfig(hidden=256, batch=256, lr=3e-4)), env),
        encoders=EncoderConfig(preset="tiny"),
        train=TrainConfig(
            steps=6000,
            envs=2,
            prefill=1000,
            train_ratio=32,
            replay_capacity=50_000,
            eval_every=3000,
            eval_episodes=10,
            log_every=10,
        ),
    )


def _filling(reward: RewardConfig, env: AnyEnvConfig) -> RewardConfig:
    """`reward` with windows that fill an episode: 128 of Meta-World's 256 steps, 125 of dm_control's 125 to 500."""
    return replace(reward, window=125, interval=125) if isinstance(env, ControlConfig) else reward


PRESETS = {"paper": paper, "tiny": tiny}


@dataclass(frozen=True)
class Overrides:
    """Flags that were given; None leaves the preset's value (or, with --resume, the run's)."""

    task: str | None = None
    camera: str | None = None
    episode_length: int | None = None
    action_repeat: int | None = None
    rendering: str | None = None
    distraction: str | None = None
    distraction_types: tuple[str, ...] | None = None
    dynamic_distractions: bool | None = None
    backgrounds: str | None = None

    size: str | None = None
    batch_size: int | None = None
    batch_length: int | None = None
    lr: float | None = None
    warmup: int | None = None
    dtype: str | None = None

    reward: str | None = None
    reward_weights: str | None = None
    reward_scale: float | None = None
    roboclip_goal: str | None = None
    roboclip_byte_pixels: bool | None = None
    motion_adapter: str | None = None
    alpha: float | None = None
    beta: float | None = None
    window: int | None = None
    interval: int | None = None
    clip_frames: int | None = None
    credit: str | None = None
    use_video: bool | None = None
    use_fb: bool | None = None
    video_centred: bool | None = None
    fb_steps: int | None = None
    fb_next_action: str | None = None
    fb_standardise: bool | None = None
    exploration: float | None = None

    vae: str | None = None
    dino: str | None = None
    clip: str | None = None
    weights: str | None = None
    vae_float8: bool | None = None

    steps: int | None = None
    envs: int | None = None
    seed: int | None = None
    device: str | None = None
    engine: str | None = None
    minutes: float | None = None
    env_reward: str | None = None
    prefill: int | None = None
    train_ratio: float | None = None
    replay_capacity: int | None = None
    release_delay: int | None = None
    eval_every: int | None = None
    eval_episodes: int | None = None
    log_every: int | None = None
    checkpoint_minutes: float | None = None
    overlap: bool | None = None
    overlap_multiprocessors: int | None = None

    def given(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


CONTROL_ONLY = {field.name for field in fields(ControlConfig)} - {field.name for field in fields(EnvConfig)}
"""Flags of dm_control's environments alone."""

# Flags that belong to the reward, and what its settings call them.
REWARD_SETTINGS = {"reward": "name", "reward_weights": "weights", "reward_scale": "scale"}
# Flags that belong to a part of its settings, and what that calls them.
REWARD_PART_SETTINGS = {
    "fb": {"fb_next_action": "next_action", "fb_standardise": "standardise_features"},
    "roboclip": {"roboclip_goal": "goal", "roboclip_byte_pixels": "byte_pixels"},
    "tadpole": {"motion_adapter": "motion_adapter"},
}
# The rewards with a bonus for exploring, and where their settings are.
EXPLORING = {"diffusion-reward": "diffusion", "viper": "viper"}

# A resumed run may go on longer, on another device or engine, and look at itself more often; the rest is what it is.
RESUMABLE = (
    "steps", "minutes", "device", "engine", "eval_every", "eval_episodes", "log_every", "checkpoint_minutes", "overlap",
    "overlap_multiprocessors",
)  # fmt: skip


def resolve(preset: str, overrides: Overrides) -> RunConfig:
    """The preset's configuration with the flags that were given.

    Raises:
        UserError: unknown preset or task, or a value that a room refuses.
    """
    if preset not in PRESETS:
        raise UserError(f"--preset {preset}: unknown; use one of {', '.join(PRESETS)}")
    return apply(PRESETS[preset](overrides.task or DEFAULT_TASK), overrides)


def apply(config: RunConfig, overrides: Overrides) -> RunConfig:
    """`config` with the flags that were given, each in the room that it belongs to."""
    given = overrides.given()
    env = with_task(config.env, given.pop("task")) if "task" in given else config.env
    name = given.get("reward", config.reward.name)
    reward = {setting: given.pop(flag) for flag, setting in REWARD_SETTINGS.items() if flag in given}
    for part, settings in REWARD_PART_SETTINGS.items():
        mine = {setting: given.pop(flag) for flag, setting in settings.items() if flag in given}
        reward[part] = replace(getattr(config.reward, part), **mine)
    if "exploration" in given:
        if name not in EXPLORING:
            raise UserError(f"--exploration: {name} has no bonus for exploring; only {' and '.join(EXPLORING)} have")
        part = EXPLORING[name]
        reward[part] = replace(getattr(config.reward, part), exploration=given.pop("exploration"))
    rooms: dict[str, Any] = {}
    for room in ("env", "agent", "reward", "encoders", "train"):
        current = env if room == "env" else getattr(config, room)
        # A flag named like one of the reward's renamed settings is another room's: --weights is the encoders'.
        names = {field.name for field in fields(current)} - (
            set(REWARD_SETTINGS.values()) if room == "reward" else set()
        )
        mine = {name: given.pop(name) for name in names if name in given}
        rooms[room] = replace(current, **mine, **(reward if room == "reward" else {}))
    if misplaced := sorted(CONTROL_ONLY & given.keys()):
        flag = misplaced[0].replace("_", "-")
        raise UserError(f"--{flag}: for tasks of dm_control such as walker-walk; {env.task} is one of Meta-World's")
    assert not given, f"flags without a home: {sorted(given)}"
    return replace(config, **rooms)


def resume_config(out: Path, preset: str | None, overrides: Overrides) -> RunConfig:
    """The configuration of the run in `out`, with the flags that a resumed run may change.

    Raises:
        UserError: there is no run, or a flag asks for something else than what the run was started with.
    """
    folder = RunFolder(out)
    folder.require_run()
    config = RunConfig.load(folder.config)
    if preset not in (None, config.preset):
        raise UserError(f"--preset {preset}: this run was started with {config.preset}; leave it out to resume")
    if overrides.task is not None and env_config(overrides.task).task != config.env.task:
        raise UserError(f"--task {overrides.task}: this run was started with {config.env.task}; leave it out to resume")
    for name, value in overrides.given().items():
        if name not in RESUMABLE and apply(config, Overrides(**{name: value})) != config:
            flag = {"use_video": "no-video", "use_fb": "no-fb"}.get(name, name.replace("_", "-"))
            raise UserError(f"--{flag} {value}: differs from what this run was started with; leave it out to resume")
    return apply(config, overrides)
