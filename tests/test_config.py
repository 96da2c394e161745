"""Presets, flags, and the file in the run folder."""

import dataclasses
import json
from dataclasses import replace

import pytest

from genreward_fast.config import (
    CONTROL_ONLY,
    PRESETS,
    REWARD_PART_SETTINGS,
    REWARD_SETTINGS,
    Overrides,
    apply,
    resolve,
    resume_config,
)
from genreward_fast.errors import UserError
from genreward_fast.training.settings import RunConfig, TrainConfig

ROOMS = ("env", "agent", "reward", "encoders", "train")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_config_survives_its_file(preset, tmp_path):
    config = resolve(preset, Overrides(task="shelf-place-v3", alpha=3.0, seed=7))
    config.save(tmp_path / "config.json")
    assert RunConfig.load(tmp_path / "config.json") == config


def test_the_papers_settings():
    config = resolve("paper", Overrides())
    assert (config.reward.window, config.reward.clip_frames, config.reward.interval) == (128, 16, 128)
    assert (config.encoders.clip_size, config.encoders.feature_size) == (480, 224)
    assert (config.env.episode_length, config.env.camera, config.env.action_repeat) == (256, "corner", 1)
    assert (config.train.steps, config.train.prefill, config.train.train_ratio) == (1_000_000, 5000, 512)
    assert config.reward.fb_steps == 100_000
    assert (config.agent.size, config.agent.batch_size, config.agent.batch_length) == ("12M", 16, 64)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Overrides)])
def test_every_flag_reaches_exactly_one_room(field):
    values = {
        "task": "reach", "camera": "corner2", "rendering": "quality", "size": "25M", "dtype": "float32",
        "reward": "none", "credit": "closing", "vae": "x", "dino": "x", "clip": "x", "weights": "random",
        "device": "cpu", "env_reward": "sparse", "use_video": False, "use_fb": False, "action_repeat": 2,
        "clip_frames": 8, "fb_steps": 6000, "distraction": "hard", "distraction_types": ("color",),
        "dynamic_distractions": True, "backgrounds": "/videos", "fb_next_action": "policy", "fb_standardise": True,
        "reward_weights": "x", "vae_float8": True, "roboclip_goal": "text", "roboclip_byte_pixels": True,
        "motion_adapter": "x",
    }  # fmt: skip
    control = Overrides(task="walker-walk", distraction="easy")
    before = resolve("paper", control if field in CONTROL_ONLY else Overrides())
    for part, settings in REWARD_PART_SETTINGS.items():
        if field in settings:
            after = apply(before, Overrides(**{field: values[field]}))
            changed = replace(getattr(before.reward, part), **{settings[field]: values[field]})
            assert changed != getattr(before.reward, part)
            assert after == replace(before, reward=replace(before.reward, **{part: changed}))
            return
    if field == "exploration":
        after = apply(before, Overrides(reward="viper", exploration=240))
        viper = replace(before.reward.viper, exploration=240)
        assert after == replace(before, reward=replace(before.reward, name="viper", viper=viper))
        return
    name = REWARD_SETTINGS.get(field, field)
    owners = [room for room in ROOMS if name in {f.name for f in dataclasses.fields(getattr(before, room))}]
    if name in REWARD_SETTINGS.values():  # --weights is not the reward's
        owners = ["reward"] if field in REWARD_SETTINGS else [room for room in owners if room != "reward"]
    assert len(owners) == 1, "the first of several rooms would win"
    after = apply(before, Overrides(**{field: values.get(field, 240)}))
    assert [room for room in ROOMS if getattr(before, room) != getattr(after, room)] == owners
    wanted = values.get(field, 240)
    assert getattr(getattr(after, owners[0]), name) == wanted


def test_unknown_fields_and_damaged_files_are_refused(tmp_path):
    path = tmp_path / "config.json"
    resolve("tiny", Overrides()).save(path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"surprise": 1}))
    with pytest.raises(UserError, match="surprise"):
        RunConfig.load(path)
    path.write_text(json.dumps(content)[:50])
    with pytest.raises(UserError, match=r"config\.json"):
        RunConfig.load(path)
    with pytest.raises(UserError, match="no such file"):
        RunConfig.load(tmp_path / "nowhere.json")


def test_a_window_longer_than_an_episode_is_refused():
    with pytest.raises(UserError, match="longer than an episode of 64 steps"):
        resolve("tiny", Overrides(episode_length=128, action_repeat=2))


def test_the_seed_is_the_runs():
    assert resolve("tiny", Overrides(seed=7)).train.seed == 7
    assert resolve("tiny", Overrides(seed=7)).encoders == resolve("tiny", Overrides()).encoders


def test_fb_that_would_never_learn_is_refused():
    with pytest.raises(UserError, match="FB would never learn"):
        resolve("tiny", Overrides(fb_steps=1000))
    assert not resolve("tiny", Overrides(fb_steps=1000, use_fb=False)).reward.use_fb


def test_nothing_to_learn_from_is_refused():
    with pytest.raises(UserError, match="nothing to learn from"):
        resolve("tiny", Overrides(reward="none", env_reward="none"))


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", -5), ("steps", 0), ("envs", 0), ("seed", -1), ("train_ratio", 0.0), ("train_ratio", float("nan")),
     ("env_reward", "denze"), ("checkpoint_minutes", -1.0), ("eval_episodes", 0)],
)  # fmt: skip
def test_nonsense_is_refused_by_name(field, value):
    with pytest.raises(UserError, match=f"--{field.replace('_', '-')}"):
        TrainConfig(**{field: value})


def test_resume_keeps_what_the_run_was_started_with(tmp_path):
    config = resolve("tiny", Overrides(alpha=2.0))
    config.save(tmp_path / "config.json")
    assert resume_config(tmp_path, None, Overrides(alpha=2.0)) == config
    assert resume_config(tmp_path, "tiny", Overrides(steps=99)).train.steps == 99
    with pytest.raises(UserError, match=r"--alpha 3\.0: differs"):
        resume_config(tmp_path, None, Overrides(alpha=3.0))
    with pytest.raises(UserError, match="--no-video"):
        resume_config(tmp_path, None, Overrides(use_video=False))
    with pytest.raises(UserError, match="--preset paper"):
        resume_config(tmp_path, "paper", Overrides())
    with pytest.raises(UserError, match="holds no run"):
        resume_config(tmp_path / "nowhere", None, Overrides())
