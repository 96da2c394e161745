"""What a grid is made of: the flags of each trial, rewards with flags of their own, and what is refused."""

from pathlib import Path

import pytest
import torch

from genreward_fast.commands.train import train_settings
from genreward_fast.errors import UserError
from genreward_fast.goals.goal import Goal
from genreward_fast.training.report.methods import by_method
from genreward_fast.training.report.runs import read_runs
from genreward_fast.training.sweep.folder import SweepFolder
from genreward_fast.training.sweep.grid import Grid, parse_grid, trials_of


def trials(**options):
    return trials_of(Grid(**parse_grid(**options)), train_settings)


def test_every_combination_once_and_the_first_seed_first():
    made = trials(tasks="reach,push-v3", rewards="none,genreward", env_rewards="dense,sparse", seeds="3,1")
    places = [(t.seed, t.task, t.reward, t.env_reward) for t in made]
    assert len(set(places)) == len(places) == 16
    assert [seed for seed, *_ in places] == [3] * 8 + [1] * 8
    for trial in made:
        config = train_settings(trial.arguments)
        assert config == trial.config
        assert (config.env.task, config.reward.name) == (trial.task, trial.reward)
        assert (config.train.env_reward, config.train.seed) == (trial.env_reward, trial.seed)
    assert len({trial.name for trial in made}) == 16


def test_tasks_of_both_suites():
    made = trials(tasks="reach-v3,walker_walk,reach", rewards="none")
    assert [trial.config.env.task for trial in made] == ["reach", "walker-walk"]


def test_ablations_and_weights_are_rewards_with_flags():
    made = trials(
        rewards="none:env-reward=dense, none, genreward, genreward:no-video, genreward:no-fb, genreward:alpha=0.5",
        env_rewards="sparse",
        flags=("--steps", "50000", "--fb-steps", "15000"),
    )
    settings = [
        (t.config.train.env_reward, t.config.reward.name, t.config.reward.use_video, t.config.reward.use_fb)
        for t in made
    ]
    assert settings == [
        ("dense", "none", True, True),
        ("sparse", "none", True, True),
        ("sparse", "genreward", True, True),
        ("sparse", "genreward", False, True),
        ("sparse", "genreward", True, False),
        ("sparse", "genreward", True, True),
    ]
    assert made[-1].config.reward.alpha == 0.5
    assert made[-1].name == "pick-place-sparse-genreward-alpha-0.5-seed0"
    assert {t.config.train.steps for t in made} == {50_000}
    assert {t.config.reward.fb_steps for t in made} == {15_000}


def test_each_task_has_its_goal(tmp_path):
    video = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
    Goal("reach the mark", video, 2).save(tmp_path / "reach")
    (trial,) = trials(tasks="reach", goals=tmp_path)
    assert trial.arguments[:2] == ("--goal", str(tmp_path / "reach"))
    with pytest.raises(UserError, match="push"):
        trials(tasks="reach,push", goals=tmp_path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tasks": "reach,fly"}, "fly"),
        ({"tasks": ","}, "none is named"),
        ({"rewards": "money"}, "--reward money: unknown"),
        ({"rewards": "genreward:no-sound"}, "--no-sound"),
        ({"rewards": "genreward:alpha=much"}, "'much' is not a valid float"),
        ({"rewards": "genreward:alpha=-1"}, "--alpha"),
        ({"rewards": "genreward:no-video:no-fb"}, "--no-fb"),
        ({"rewards": "genreward::no-fb"}, "genreward::no-fb: write NAME"),
        ({"rewards": "genreward:seed=3"}, "use --seeds"),
        ({"rewards": "none,none"}, "names none twice"),
        ({"rewards": "genreward:alpha=3,genreward:alpha=3.0"}, "the same run twice"),
        ({"rewards": "none,none:env-reward=dense"}, "the same run twice"),
        ({"env_rewards": "dense,rich"}, "'rich' is not one of"),
        ({"env_rewards": "none", "rewards": "none"}, "nothing to learn from"),
        ({"seeds": "0,1,0"}, "--seeds names 0 twice"),
        ({"seeds": "1,01"}, "--seeds names 1 twice"),
        ({"seeds": "-1"}, "--seeds -1: not a seed"),
        ({"seeds": str(2**64)}, "--seed"),
        ({"flags": ("--task", "reach")}, "use --tasks"),
        ({"flags": ("--seed=3",)}, "use --seeds"),
        ({"flags": ("--resume",)}, "use --resume before the --"),
        ({"flags": ("--steps", "many")}, "'many' is not a valid integer"),
        ({"flags": ("reach",)}, "unexpected extra argument"),
        ({"flags": ("--device", "cuda:1")}, "the sweep gives each trial its GPU"),
        ({"flags": ("--goal", "g"), "tasks": "reach,push"}, "for each of them with --goals"),
        ({"goals": Path("nowhere")}, "nowhere"),
    ],
)
def test_bad_input(options, says):
    with pytest.raises(UserError) as refusal:
        trials(**options)
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tasks": "push,reach", "seeds": "1,0"}, None),
        ({}, None),
        ({"tasks": "reach"}, "--tasks reach: this sweep was started with reach,push"),
        ({"seeds": "0,1,2"}, "--seeds 0,1,2: this sweep was started with 0,1"),
        ({"env_rewards": "sparse"}, "--env-rewards sparse"),
        ({"rewards": "none"}, "--rewards none: this sweep was started with genreward"),
        ({"flags": ("--steps", "50")}, "-- --steps 50: this sweep was started with --steps 40"),
        ({"flags": ("--steps", "40")}, None),
    ],
)
def test_another_grid_is_refused(options, says):
    grid = Grid(**parse_grid(tasks="reach,push", seeds="0,1", flags=("--steps", "40")))
    if says is None:
        grid.require_same(parse_grid(**options))
    else:
        with pytest.raises(UserError) as refusal:
            grid.require_same(parse_grid(**options))
        assert says in str(refusal.value)


def test_a_report_finds_the_runs_and_tells_the_methods_apart(tmp_path):
    made = trials(
        tasks="reach,pick-place",
        rewards="none:env-reward=dense,none,genreward,genreward:no-video,genreward:no-fb,genreward:alpha=0.5",
        env_rewards="sparse",
        seeds="0,1,2",
    )
    for trial in made:
        run = SweepFolder(tmp_path).run(trial.name)
        trial.config.save(run.config)
        run.metrics.write_text('{"step": 500, "eval/success": 0.5, "eval/return_mean": 1.0}\n')
    methods = by_method(read_runs([tmp_path]))
    alpha = next(trial.config.reward.alpha for trial in made if trial.reward == "genreward")
    assert {name: len(runs) for name, runs in methods.items()} == {
        "dense": 6,
        "sparse": 6,
        f"sparse + genreward (alpha {alpha})": 6,
        "sparse + genreward (alpha 0.5)": 6,
        "sparse + genreward without video": 6,
        "sparse + genreward without fb": 6,
    }
