import dataclasses

import numpy as np
import pytest

from genreward_fast.envs.env_config import EnvConfig
from genreward_fast.envs.expert import expert_episode, expert_success
from genreward_fast.envs.metaworld_env import MetaWorldEnv
from genreward_fast.errors import UserError

PICK_PLACE = EnvConfig("pick-place")


def test_the_expert_of_pick_place_succeeds():
    episode = expert_episode(PICK_PLACE, 0, (24,))
    steps = len(episode.actions)
    assert 40 <= steps <= 80
    assert episode.first_success == steps - 1
    assert episode.success.tolist() == [False] * (steps - 1) + [True]
    assert episode.frames[24].shape == (steps + 1, 24, 24, 3)
    assert episode.frames[24].dtype == np.uint8
    assert episode.states.shape == (steps + 1, 39)
    assert episode.actions.shape == (steps, 4)
    assert np.abs(episode.actions).max() <= 1
    assert episode.rewards[-1] > episode.rewards[0]
    assert not np.array_equal(episode.frames[24][0], episode.frames[24][-1])


def test_its_actions_can_be_played_again():
    episode = expert_episode(PICK_PLACE, 1, ())
    env = MetaWorldEnv(PICK_PLACE)
    env.reset(seed=1)
    for action, reward, success in zip(episode.actions, episode.rewards, episode.success):
        _, value, _, _, info = env.step(action)
        assert np.float32(value) == reward
        assert info["success"] == success


def test_it_can_go_on_after_success():
    episode = expert_episode(dataclasses.replace(PICK_PLACE, episode_length=100), 0, (), stop_at_success=False)
    assert len(episode.actions) == 100
    assert episode.first_success is not None
    assert episode.first_success < 99
    assert episode.frames == {}


def test_noise_is_seeded():
    env = MetaWorldEnv(PICK_PLACE)
    options = {"noise": 0.3, "max_steps": 10, "env": env}
    first = expert_episode(PICK_PLACE, 0, (), **options)
    again = expert_episode(PICK_PLACE, 0, (), **options)
    without = expert_episode(PICK_PLACE, 0, (), max_steps=10, env=env)
    assert len(first.actions) == 10
    assert np.array_equal(first.actions, again.actions)
    assert not np.allclose(first.actions, without.actions)
    assert without.first_success is None


def test_random_actions_take_over():
    env = MetaWorldEnv(PICK_PLACE)
    options = {"stop_at_success": False, "max_steps": 60, "env": env}
    scripted = expert_episode(PICK_PLACE, 0, (), **options).actions
    half = expert_episode(PICK_PLACE, 0, (), random_from=20, **options).actions
    chance = expert_episode(PICK_PLACE, 0, (), random_from=0, **options).actions
    assert np.array_equal(half[:20], scripted[:20])
    for actions in (half[20:], chance):  # uniform in [-1, 1]: deviation 0.58 in each of the four dimensions
        assert not np.isin(actions, scripted).any()
        assert np.abs(actions).max() <= 1
        assert 0.4 < actions.std(axis=0).min() <= actions.std(axis=0).max() < 0.8
    assert np.array_equal(chance, expert_episode(PICK_PLACE, 0, (), random_from=0, **options).actions)


def test_seeds_are_tried_until_one_succeeds(monkeypatch):
    from genreward_fast.envs import expert

    real = expert.expert_episode

    def unlucky(config, seed, sizes, **options):
        episode = real(config, seed, sizes, **options)
        return dataclasses.replace(episode, first_success=None) if seed < 12 else episode

    monkeypatch.setattr(expert, "expert_episode", unlucky)
    episode = expert_success(PICK_PLACE, 10, (16,))
    assert episode.seed == 12
    assert episode.frames[16].shape[1:] == (16, 16, 3)
    with pytest.raises(UserError, match="did not succeed from 2 starts"):
        expert_success(PICK_PLACE, 10, (), attempts=2)


def test_too_short_an_episode_never_succeeds():
    with pytest.raises(UserError, match="within 5 steps"):
        expert_success(EnvConfig("pick-place", episode_length=5), 0, (), attempts=2)


@pytest.mark.parametrize("options", [{"noise": -1.0}, {"noise": float("nan")}, {"max_steps": 0}, {"random_from": -1}])
def test_bad_options_are_refused(options):
    with pytest.raises(UserError, match=next(iter(options))):
        expert_episode(PICK_PLACE, 0, (), **options)


def test_an_environment_of_another_config_is_refused():
    with pytest.raises(ValueError, match="reach"):
        expert_episode(PICK_PLACE, 0, (), env=MetaWorldEnv(EnvConfig("reach")))


@pytest.mark.slow
def test_the_experts_of_all_tasks_succeed():
    from genreward_fast.envs.tasks import TASKS

    failed = []
    for task in TASKS:
        try:
            expert_success(EnvConfig(task), 0, (), attempts=5)
        except UserError:
            failed.append(task)
    assert failed == []


def test_every_third_frame_is_rendered_and_the_episode_is_the_same():
    whole = expert_episode(PICK_PLACE, 3, (24,), stop_at_success=False, max_steps=10)
    thinned = expert_episode(PICK_PLACE, 3, (24,), stop_at_success=False, max_steps=10, render_every=3)
    assert np.array_equal(thinned.frames[24], whole.frames[24][::3])
    assert np.array_equal(thinned.states, whole.states)
    with pytest.raises(UserError, match="render_every"):
        expert_episode(PICK_PLACE, 3, (), render_every=0)
