import pytest

from genreward_fast.envs import tasks
from genreward_fast.envs.control_config import ControlConfig
from genreward_fast.envs.control_tasks import (
    ACTION_REPEATS,
    CONTROL_TASKS,
    LETTERS,
    action_size,
    canonical_control,
    domain_and_task,
)
from genreward_fast.envs.env_config import EnvConfig
from genreward_fast.envs.suites import env_config, with_task
from genreward_fast.errors import UserError


def test_the_names_of_the_two_suites_do_not_collide():
    assert not LETTERS.keys() & tasks.LETTERS.keys()
    assert len(LETTERS) == len(CONTROL_TASKS)
    assert set(ACTION_REPEATS) <= set(CONTROL_TASKS)


def test_a_task_is_found_in_its_suite_by_any_of_its_names():
    for name in ("walker-walk", "walker_walk", "WalkerWalk"):
        assert env_config(name) == ControlConfig("walker-walk")
    assert env_config("ball-in-cup-catch").task == "ball_in_cup-catch"
    assert env_config("Pick_Place-v3") == EnvConfig("pick-place")
    for task in CONTROL_TASKS:
        assert env_config(task).task == task
    for task in tasks.TASKS:
        assert env_config(task).task == task


def test_an_unknown_name_lists_the_closest_of_both_suites():
    with pytest.raises(UserError, match="the closest are walker-walk"):
        env_config("walker-wolk")
    with pytest.raises(UserError, match="pick-place"):
        env_config("pick-plase")
    with pytest.raises(UserError, match=r"reacher-(easy|hard).*reach|reach.*reacher-(easy|hard)"):
        env_config("reachers")
    with pytest.raises(UserError, match=r"choose one of assembly.*walker-run"):
        env_config("###")
    with pytest.raises(UserError, match="only version 3"):
        env_config("pick-place-v2")
    with pytest.raises(UserError, match="dm_control has no such task"):
        canonical_control("pick-place")


def test_another_task_keeps_the_settings_within_a_suite():
    assert with_task(EnvConfig("reach", camera="topview"), "push") == EnvConfig("push", camera="topview")
    hard = ControlConfig("walker-walk", distraction="hard")
    assert with_task(hard, "walker-run") == ControlConfig("walker-run", distraction="hard")
    assert with_task(hard, "reach") == EnvConfig("reach")


def test_the_table_of_tasks_is_dm_controls():
    pytest.importorskip("dm_control")
    from genreward_fast.envs import renderer  # noqa: F401  it selects the OpenGL backend before mujoco is imported

    # isort: split
    from dm_control import suite

    theirs = {f"{domain}-{task}" for domain, task in suite.ALL_TASKS if domain != "lqr"}
    assert set(CONTROL_TASKS) == theirs
    slow = ("dog",)  # its model takes most of a second: one task of it is enough
    for task in CONTROL_TASKS:
        domain, name = domain_and_task(task)
        if domain not in slow or name == "stand":
            spec = suite.load(domain, name).action_spec()
            assert spec.shape == (action_size(task),)
            assert max(abs(spec.minimum).max(), spec.maximum.max()) < 2  # bounded, so that it can be scaled
