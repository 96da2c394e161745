"""The planner on Meta-World: bad input, and an expert's own picture of an episode as the plan."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from genreward_fast.cli import main
from genreward_fast.envs.env_config import EnvConfig
from genreward_fast.envs.expert import expert_episode
from genreward_fast.envs.metaworld_env import MetaWorldEnv
from genreward_fast.envs.seeds import episode_seed
from genreward_fast.goals.demo_collect import Collection, collect
from genreward_fast.goals.goal import Goal
from genreward_fast.training.unipi.fitting import fit_inverse_dynamics
from genreward_fast.training.unipi.inverse_dynamics import FittedDynamics
from genreward_fast.training.unipi.plan import actions_of_video

PLANNER = ["eval", "--policy", "unipi", "--task", "reach", "--inverse-dynamics", "nowhere", "--out", "out"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["eval"], "either --run"),
        (["eval", "--run", "r", "--policy", "unipi"], "either --run"),
        (["eval", "--run", "r", "--task", "reach"], "--task: goes with --policy unipi"),
        (["eval", "--policy", "guess"], "'guess' is not"),
        (PLANNER[:5], "needs --inverse-dynamics"),
        (PLANNER[:7], "needs --out"),
        (PLANNER, "nowhere: holds no inverse_dynamics.json"),
        ([*PLANNER, "--task", "fly"], "fly"),
        ([*PLANNER, "--episodes", "0"], "--episodes must be at least 1"),
        ([*PLANNER, "--replan", "0"], "--replan must be at least 1"),
        ([*PLANNER, "--plan-steps", "0"], "--plan-steps must be at least 1"),
        ([*PLANNER, "--seed", "-1"], "--seed"),
        ([*PLANNER, "--device", "tpu"], "--device tpu"),
        ([*PLANNER, "--goal", "g", "--replan", "5"], "--replan together with --goal"),
        ([*PLANNER, "--goal", "g", "--video-model", "m"], "--video-model together with --goal"),
        ([*PLANNER, "--out", "/dev/null"], "/dev/null: exists"),
    ],
)
def test_bad_input_is_one_line(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert says in lines[0]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_and_a_goal_that_does_not_fit(toy_fit, tmp_path, capsys):
    arguments = ["eval", "--policy", "unipi", "--task", "reach", "--inverse-dynamics", str(toy_fit.folder)]
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main([*arguments, "--out", str(tmp_path)]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    Goal.from_video(torch.zeros(3, 24, 48, 3, dtype=torch.uint8), "reach", select="last").save(tmp_path / "goal")
    out = tmp_path / "out"
    assert main([*arguments, "--goal", str(tmp_path / "goal"), "--plan-steps", "4", "--out", str(out)]) == 2
    assert "the video is 24x48" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
def test_with_the_experts_own_video_the_hand_goes_where_the_experts_did(tmp_path, toy_config, capsys):
    """A few demonstrations of `reach`, and an episode of the evaluation that is none of them."""
    collect(Collection(("reach",), 16, size=64), tmp_path / "demos")
    fit = fit_inverse_dynamics(
        toy_config(tmp_path / "demos", tmp_path / "fit", steps=500, lr=1e-3, height=64, width=64, held_out=0.2)
    )
    assert fit.record["held_out"]["errors"][0]["r_squared"] > 0.5
    env = EnvConfig("reach")
    seed = episode_seed(0, "eval", 0, 0)
    expert = expert_episode(env, seed, (64,))
    video = torch.from_numpy(expert.frames[64])
    actions = actions_of_video(FittedDynamics.load(tmp_path / "fit").network, video, len(video) - 1).numpy()
    random = np.random.default_rng(0).uniform(-1, 1, (8, *actions.shape))

    def distance(played):
        """Mean way from the expert's hand to this one's, step for step."""
        world = MetaWorldEnv(env)
        world.reset(seed=seed)
        hands = np.stack([world.step(action)[0][:3] for action in played])
        return np.linalg.norm(hands - expert.states[1:, :3], axis=1).mean()

    followed, by_chance = distance(actions), np.mean([distance(played) for played in random])
    assert followed < 0.5 * by_chance

    solved = Goal.from_video(video, "reach", select="last", provenance={"steps": len(video) - 1})
    solved.save(tmp_path / "goal")
    arguments = ["--inverse-dynamics", str(tmp_path / "fit"), "--goal", str(tmp_path / "goal"), "--episodes", "1"]
    out = ["--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["eval", "--policy", "unipi", "--task", "reach", *arguments, *out]) == 0
    assert "one given video is followed" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert record["unipi"]["plan_steps"] == len(video) - 1
    world = MetaWorldEnv(env)
    world.reset(seed=seed)
    still = np.zeros(4, np.float32)
    still[3] = actions[-1, 3]
    total = sum(world.step(actions[t] if t < len(actions) else still)[1] for t in range(256))
    assert record["returns"] == [pytest.approx(total, rel=1e-4)]
