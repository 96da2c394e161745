import dataclasses

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from genreward_fast.envs.env_config import EnvConfig
from genreward_fast.envs.metaworld_env import MetaWorldEnv
from genreward_fast.envs.tasks import TASKS

PICK_PLACE = EnvConfig("pick-place", episode_length=20)


def actions(count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, 4)).astype(np.float32)


def play(env, seed, count=8):
    """States and rewards of an episode with the same actions every time."""
    states, rewards = [env.reset(seed=seed)[0]], []
    for action in actions(count):
        state, reward, *_ = env.step(action)
        states.append(state)
        rewards.append(reward)
    return np.array(states), np.array(rewards)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_steps_and_its_episodes_depend_on_their_seed_alone(task):
    env = MetaWorldEnv(EnvConfig(task, episode_length=20))
    states, rewards = play(env, 1)
    assert states.shape == (9, 39)
    assert np.isfinite(states).all()
    assert np.isfinite(rewards).all()
    other, _ = play(env, 2)
    assert not np.array_equal(states[0], other[0])  # another start or another goal
    again, again_rewards = play(env, 1)  # after another episode, so that nothing of it may be left
    assert np.array_equal(states, again)
    assert np.array_equal(rewards, again_rewards)


def test_the_episode_is_meta_worlds_own():
    from metaworld.env_dict import ENV_CLS_MAP

    env = MetaWorldEnv(PICK_PLACE)
    states, rewards = play(env, 5)
    theirs = ENV_CLS_MAP["pick-place-v3"]()
    theirs._set_task_called, theirs._partially_observable = True, False
    theirs.__dict__.pop("sawyer_observation_space", None)
    theirs._last_rand_vec = env.simulation._last_rand_vec
    state, _ = theirs.reset()
    assert np.array_equal(state, states[0])
    for action, expected, reward in zip(actions(8), states[1:], rewards):
        state, value, *_ = theirs.step(action)
        assert np.array_equal(state, expected)
        assert value == reward


def test_resets_without_a_seed_go_on_with_the_same_sequence():
    def sequence(env, seed):
        return np.array([env.reset(seed=seed)[0], *(env.reset()[0] for _ in range(4))])

    env = MetaWorldEnv(PICK_PLACE)
    first = sequence(env, 3)
    assert np.array_equal(first, sequence(MetaWorldEnv(PICK_PLACE), 3))
    assert not np.array_equal(first, sequence(env, 4))
    starts, goals = first[:, 4:7], first[:, -3:]
    assert len(np.unique(starts.round(4), axis=0)) == 5
    assert len(np.unique(goals.round(4), axis=0)) == 5
    assert (np.abs(goals).sum(1) > 0).all()  # Meta-World hides a goal by putting zeros there


def test_an_episode_is_truncated_and_never_terminated():
    env = MetaWorldEnv(PICK_PLACE)
    env.reset(seed=0)
    ends = [env.step(action)[2:4] for action in actions(20)]
    assert ends == [(False, False)] * 19 + [(False, True)]
    with pytest.raises(RuntimeError, match="reset"):
        env.step(actions(1)[0])


def test_meta_worlds_own_limit_of_500_steps_does_not_apply():
    env = MetaWorldEnv(EnvConfig("reach", episode_length=510))
    env.reset(seed=0)
    assert [env.step(np.zeros(4))[3] for _ in range(510)].index(True) == 509


def test_a_repeated_action_is_that_many_steps():
    repeated = MetaWorldEnv(EnvConfig("pick-place", episode_length=20, action_repeat=2))
    single = MetaWorldEnv(PICK_PLACE)
    repeated.reset(seed=0)
    single.reset(seed=0)
    for count, action in enumerate(actions(10), start=1):
        state, reward, _, truncated, _ = repeated.step(action)
        first, second = single.step(action), single.step(action)
        assert np.array_equal(state, second[0])
        assert reward == pytest.approx(first[1] + second[1])
        assert truncated == second[3] == (count == 10)


def test_actions_are_clipped():
    one, other = MetaWorldEnv(PICK_PLACE), MetaWorldEnv(PICK_PLACE)
    one.reset(seed=0)
    other.reset(seed=0)
    assert np.array_equal(one.step([5, -7, 0.5, 2])[0], other.step([1, -1, 0.5, 1])[0])


@pytest.mark.parametrize("action", [[np.nan, 0, 0, 0], [0, 0, np.inf, 0]])
def test_actions_that_are_not_finite_are_refused(action):
    env = MetaWorldEnv(PICK_PLACE)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="finite"):
        env.step(action)


def test_actions_of_another_shape_are_refused():
    env = MetaWorldEnv(PICK_PLACE)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"\(4,\), not \(3,\)"):
        env.step([0, 0, 0])


def test_rendering_changes_nothing_in_the_episode():
    env = MetaWorldEnv(PICK_PLACE)
    states, _ = play(env, 7)
    env.reset(seed=7)
    for action, state in zip(actions(8), states[1:]):
        env.render_sizes((16,))
        assert np.array_equal(env.step(action)[0], state)
    env.close()


def test_the_first_picture_shows_this_episodes_goal():
    env = MetaWorldEnv(PICK_PLACE)
    env.reset(seed=0)
    for seed in (1, 2):
        env.reset(seed=seed)
        goal = env.simulation.data.site("goal").xpos
        assert np.allclose(goal, env.simulation._target_pos)
    first = env.render_sizes((64,))[64]
    env.reset(seed=1)
    env.reset(seed=2)
    assert np.array_equal(first, env.render_sizes((64,))[64])
    env.close()


def test_the_rendering_setting_reaches_the_renderer():
    fast = MetaWorldEnv(PICK_PLACE)
    quality = MetaWorldEnv(dataclasses.replace(PICK_PLACE, rendering="quality", camera="corner2"))
    for env in (fast, quality):
        env.reset(seed=0)
    assert not fast.renderer._scene.flags[0]
    assert quality.renderer._scene.flags[0]
    assert fast.render_sizes(()) == {}
    assert fast.render_sizes((24,))[24].shape == (24, 24, 3)
    fast.close()
    quality.close()


def test_nothing_is_rendered_that_was_not_asked_for():
    env = MetaWorldEnv(PICK_PLACE)
    play(env, 0)
    assert env.render_sizes(()) == {}
    assert env._renderer is None


def test_gymnasiums_own_checks_pass():
    env = MetaWorldEnv(PICK_PLACE)
    check_env(env, skip_render_check=True)
    assert env.render().shape == (480, 480, 3)
    env.close()


def test_mujocos_warnings_do_not_write_files(tmp_path, monkeypatch, caplog):
    import mujoco

    monkeypatch.chdir(tmp_path)
    MetaWorldEnv(PICK_PLACE)
    mujoco.get_mju_user_warning()("simulation is unstable")
    assert "simulation is unstable" in caplog.text
    assert not list(tmp_path.iterdir())
