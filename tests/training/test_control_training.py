"""Runs on dm_control's tasks: actions of their own size, no success, and goals from videos."""

import dataclasses
import re

import pytest

from genreward_fast.agent.config import NetworkSize
from genreward_fast.cli import main
from genreward_fast.config import Overrides, apply, resolve, resume_config
from genreward_fast.envs.control_config import ControlConfig
from genreward_fast.envs.env_config import EnvConfig
from genreward_fast.errors import UserError
from genreward_fast.training.logger import read_metrics
from genreward_fast.training.policy import Policy
from genreward_fast.training.settings import RunConfig
from genreward_fast.training.start import evaluate_run, start_run

SMALL = NetworkSize(deter=64, hidden=16, classes=4, depth=2, units=16, stoch=4)


def small_config(task: str, **flags) -> RunConfig:
    values = {
        "device": "cpu", "envs": 1, "prefill": 20, "train_ratio": 4, "window": 8, "interval": 8, "clip_frames": 4,
        "fb_steps": 40, "release_delay": 8, "eval_every": 0, "eval_episodes": 1, "log_every": 2,
    } | flags  # fmt: skip
    config = apply(resolve("tiny", Overrides(task=task)), Overrides(**values))
    agent = dataclasses.replace(config.agent, network=SMALL, batch_size=4, batch_length=4)
    fb = dataclasses.replace(config.reward.fb, hidden=16, batch=16, z_dim=8)
    return dataclasses.replace(config, agent=agent, reward=dataclasses.replace(config.reward, fb=fb))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 60 steps on cartpole-swingup with everything that distracts, and its summary."""
    pytest.importorskip("dm_control")
    folder = tmp_path_factory.mktemp("runs") / "cartpole"
    config = small_config(
        "cartpole-swingup", reward="none", distraction="hard", dynamic_distractions=True, episode_length=20,
        action_repeat=2, steps=60,
    )  # fmt: skip
    return folder, start_run(config, folder, goal=None, resume=False)


def test_success_is_left_out_and_the_return_is_reported(finished):
    folder, summary = finished
    assert summary.env_steps >= 60
    assert summary.updates > 0
    assert "success" not in summary.evaluation
    assert "not defined for this task" in "\n".join(summary.lines())
    names = {name for record in read_metrics(folder) for name in record}
    assert {"episode/return", "eval/return_mean", "loss/image"} < names
    assert not [name for name in names if "success" in name]
    assert (folder / "curves.png").exists()


def test_the_run_is_read_back(finished):
    folder, _ = finished
    config = RunConfig.load(folder / "config.json")
    assert isinstance(config.env, ControlConfig)
    assert (config.env.distraction, config.env.action_size) == ("hard", 1)
    assert Policy.load(folder, device="cpu").agent.action_size == 1
    evaluated = evaluate_run(folder, 2, None, None, "cpu")
    record = evaluated.record()
    assert record["success"] is record["success_low"] is None
    assert (len(record["returns"]), record["successes"]) == (2, [])
    assert any(line.startswith("success   not defined for this task") for line in evaluated.lines())


def test_it_resumes_with_the_task_it_was_started_with(finished):
    folder, _ = finished
    assert resume_config(folder, None, Overrides(task="cartpole_swingup", steps=80)).train.steps == 80
    for flags in ({"task": "walker-walk"}, {"task": "reach"}, {"distraction": "easy"}):
        with pytest.raises(UserError, match="started with"):
            resume_config(folder, None, Overrides(**flags))


def test_its_video_is_a_goal_for_the_generated_reward(finished, tmp_path):
    folder, _ = finished
    goal = tmp_path / "goal"
    text = "swing the pole up and keep it there"
    assert main(["goal", "--video", str(folder / "evaluation.mp4"), "--text", text, "--out", str(goal)]) == 0
    config = small_config("ball_in_cup-catch", episode_length=24, action_repeat=2, steps=70)
    summary = start_run(config, tmp_path / "run", goal=goal, resume=False)
    assert {"video", "fb"} <= set(summary.rewards)


def test_windows_fill_the_episodes_of_the_benchmark():
    for task in ("cartpole-swingup", "cheetah-run", "walker-walk"):
        config = resolve("paper", Overrides(task=task))
        assert config.env.steps % config.reward.interval == 0
        assert config.reward.window == config.reward.interval
    assert resolve("paper", Overrides(task="reach")).reward.window == 128


def test_flags_reach_the_environment():
    flags = {"distraction": "easy", "distraction_types": ("camera",), "dynamic_distractions": True}
    config = resolve("tiny", Overrides(task="walker_walk", action_repeat=4, **flags))
    assert config.env == ControlConfig("walker-walk", action_repeat=4, **flags)
    assert resolve("tiny", Overrides(task="reach-v3")).env == EnvConfig("reach")


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (["train", "--task", "walker-walk"], "walker-walk: .*no scripted expert.*--goal DIR"),
        (["goal", "--task", "walker-walk"], "walker-walk: .*no scripted expert.*--video FILE"),
        (["train", "--task", "walker-walk", "--reward", "none", "--env-reward", "sparse"], "sparse: .*not defined"),
        (["train", "--task", "reach", "--distraction", "hard"], "--distraction: .*Meta-World's"),
        (["train", "--task", "walker-wolk"], "the closest are walker-walk"),
        (["train", "--task", "walker-walk", "--distraction", "easy", "--distraction-types", "smell"], "smell"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(command, names, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*command, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.search(names, error)
    assert not out.exists()


def test_a_folder_without_videos_leaves_nothing_behind(tmp_path, capsys):
    pytest.importorskip("dm_control")
    command = ["train", "--task", "walker-walk", "--reward", "none", "--distraction", "easy", "--envs", "1"]
    assert (
        main([*command, "--device", "cpu", "--backgrounds", str(tmp_path / "no"), "--out", str(tmp_path / "out")]) == 2
    )
    assert "no such folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
