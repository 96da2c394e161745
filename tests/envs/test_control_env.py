import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from PIL import Image

from genreward_fast.envs.control_config import ControlConfig
from genreward_fast.envs.control_tasks import ACTION_REPEATS
from genreward_fast.errors import UserError

pytest.importorskip("dm_control")

from genreward_fast.envs.control_env import ControlEnv
from genreward_fast.envs.seeds import episode_seed
from genreward_fast.envs.vector import VectorEnv

WALKER = ControlConfig("walker-walk", episode_length=40)
HARD = dataclasses.replace(WALKER, distraction="hard", dynamic_distractions=True)


def actions(env, count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, env.action_size)).astype(np.float32)


def play(env, seed, count=5):
    """States and rewards of an episode with the same actions every time."""
    states, rewards = [env.reset(seed=seed)[0]], []
    for action in actions(env, count):
        state, reward, *_ = env.step(action)
        states.append(state)
        rewards.append(reward)
    return np.array(states), np.array(rewards)


def picture(env, size=48):
    return env.render_sizes((size,))[size].astype(int)


OTHERS = """acrobot-swingup finger-turn_hard fish-swim hopper-hop humanoid-walk manipulator-bring_ball pendulum-swingup
    point_mass-hard stacker-stack_2 swimmer-swimmer6"""


@pytest.mark.parametrize("task", [*ACTION_REPEATS, *OTHERS.split()])
def test_a_task_steps_and_its_episodes_depend_on_their_seed_alone(task):
    config = ControlConfig(task, distraction="hard", distraction_types=("color", "camera"), dynamic_distractions=True)
    env = ControlEnv(config)
    states, rewards = play(env, 1)
    assert env.observation_space.shape == states.shape[1:]
    assert np.isfinite(states).all()
    assert (rewards >= 0).all()
    assert not np.array_equal(states[0], play(env, 2)[0][0])
    again, again_rewards = play(env, 1)  # after another episode, so that nothing of it may be left
    assert np.array_equal(states, again)
    assert np.array_equal(rewards, again_rewards)


def test_the_episode_is_dm_controls_own():
    from dm_control import suite

    env = ControlEnv(ControlConfig("walker-walk", action_repeat=1))
    env.reset(seed=3)
    theirs = suite.load("walker", "walk")
    theirs.reset()
    with theirs.physics.reset_context():
        theirs.physics.set_state(env.simulation.physics.get_state())
    for action in actions(env, 5):
        state, reward, *_ = env.step(action)
        moment = theirs.step(action)
        assert np.allclose(state, np.concatenate([np.ravel(part) for part in moment.observation.values()]), atol=1e-6)
        assert reward == pytest.approx(moment.reward, abs=1e-6)


def test_resets_without_a_seed_go_on_with_the_same_sequence():
    def sequence(env, seed):
        return np.array([env.reset(seed=seed)[0], *(env.reset()[0] for _ in range(3))])

    env = ControlEnv(WALKER)
    first = sequence(env, 3)
    assert np.array_equal(first, sequence(ControlEnv(WALKER), 3))
    assert not np.array_equal(first, sequence(env, 4))
    assert len(np.unique(first.round(4), axis=0)) == 4


def test_an_episode_is_truncated_at_its_length_whatever_dm_controls_limit_is():
    env = ControlEnv(dataclasses.replace(WALKER, episode_length=1100, action_repeat=11))
    env.reset(seed=0)
    ends = [env.step(np.zeros(6))[2:4] for _ in range(100)]
    assert ends == [(False, False)] * 99 + [(False, True)]
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros(6))


def test_a_discount_of_zero_terminates(monkeypatch):
    env = ControlEnv(WALKER)
    env.reset(seed=0)
    env.step(np.zeros(6))
    monkeypatch.setattr(env.simulation.task, "get_termination", lambda physics: 0.0)
    *_, reward, terminated, truncated, info = env.step(np.zeros(6))
    assert (terminated, truncated, info["success"]) == (True, False, False)
    assert reward <= 1  # of one simulator step: the repeat is not taken
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros(6))


def test_a_repeated_action_is_that_many_steps():
    repeated, single = ControlEnv(WALKER), ControlEnv(dataclasses.replace(WALKER, action_repeat=1))
    assert np.array_equal(repeated.reset(seed=0)[0], single.reset(seed=0)[0])
    for action in actions(repeated, 5):
        state, reward, *_ = repeated.step(action)
        first, second = single.step(action), single.step(action)
        assert np.array_equal(state, second[0])
        assert reward == pytest.approx(first[1] + second[1])


def test_bad_actions_are_refused_and_large_ones_clipped():
    env, other = ControlEnv(WALKER), ControlEnv(WALKER)
    for each in (env, other):
        each.reset(seed=0)
    with pytest.raises(ValueError, match="finite"):
        env.step([np.nan] * 6)
    with pytest.raises(ValueError, match=r"\(6,\), not \(4,\)"):
        env.step(np.zeros(4))
    assert np.array_equal(env.step(np.full(6, 7.0))[0], other.step(np.ones(6))[0])


def test_gymnasiums_own_checks_pass():
    env = ControlEnv(HARD)
    check_env(env, skip_render_check=True)
    assert env.render().shape == (480, 480, 3)
    env.close()


def test_what_is_rendered_changes_neither_the_episode_nor_its_distractions():
    env = ControlEnv(HARD)
    states, rewards = play(env, 7)
    last = picture(env)
    env.reset(seed=7)
    for action, state, reward in zip(actions(env, 5), states[1:], rewards):
        env.render_sizes((16, 32))
        moved = env.step(action)
        assert np.array_equal(moved[0], state)
        assert moved[1] == reward
    camera = env.simulation.physics.data.cam_xpos.copy()
    assert np.array_equal(picture(env), last)
    assert np.array_equal(env.simulation.physics.data.cam_xpos, camera)
    env.close()


def test_each_distraction_is_what_it_is_whatever_the_others_are():
    def first(*types):
        env = ControlEnv(dataclasses.replace(HARD, distraction_types=types))
        env.reset(seed=1)
        model, seen = env.simulation.physics.model, picture(env)
        colors, sky = model.mat_rgba.copy(), env._distractions._background
        pixels = None if sky is None else sky._pixels.copy()
        camera = env._distractions._camera
        pose = None if camera is None else camera.pose()[0]
        env.close()
        return seen, colors, pose, pixels

    alone = {kind: first(kind) for kind in ("color", "camera", "background")}
    every = first(*alone)
    assert np.array_equal(every[1], alone["color"][1])
    assert np.array_equal(every[2], alone["camera"][2])
    assert np.array_equal(every[3], alone["background"][3])
    plain = ControlEnv(WALKER)
    plain.reset(seed=1)
    for seen, *_ in alone.values():
        assert np.abs(seen - picture(plain)).mean() > 2
    plain.close()


def test_static_distractions_stay_through_an_episode_and_dynamic_ones_do_not():
    for config, moves in ((dataclasses.replace(HARD, dynamic_distractions=False), False), (HARD, True)):
        env = ControlEnv(config)
        seen = []
        for seed in (0, 1):
            env.reset(seed=seed)
            for _ in range(2):
                distractions = env._distractions
                picture(env)
                colors = env.simulation.physics.model.mat_rgba.copy()
                # Where the camera stands relative to the agent, which it follows.
                seen.append((colors, distractions._camera._offset(), distractions._background._pixels.copy()))
                env.step(np.zeros(6))
        for first, second, other in zip(seen[0], seen[1], seen[2]):
            assert np.array_equal(first, second) != moves
            assert not np.array_equal(first, other)
        env.close()


def test_colours_stay_within_the_difficultys_bounds():
    plain = ControlEnv(WALKER).simulation.physics.model.mat_rgba.copy()
    for difficulty, beta in (("easy", 0.1), ("medium", 0.2), ("hard", 0.3)):
        config = dataclasses.replace(HARD, distraction=difficulty, distraction_types=("color",))
        env = ControlEnv(config)
        offsets = []
        for seed in range(20):
            env.reset(seed=seed)
            env.step(np.zeros(6))
            offsets.append(env.simulation.physics.model.mat_rgba - plain)
        assert np.abs(offsets).max() <= beta + 1e-6
        assert np.abs(offsets).max() > 0.9 * beta
        assert not np.array(offsets)[..., 3].any()


def test_a_background_plays_forward_and_backward(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.fromarray(np.full((8, 8, 3), 60 * number, np.uint8)).save(tmp_path / name / f"{number}.png")
    config = dataclasses.replace(HARD, distraction_types=("background",), backgrounds=str(tmp_path), action_repeat=1)
    env = ControlEnv(config)
    env.reset(seed=0)
    corner = []
    for _ in range(12):
        corner.append(round(picture(env, 16)[0, 0, 0] / 60))
        env.step(np.zeros(6))
    env.close()
    turned = [i for i in range(1, 11) if corner[i - 1] == corner[i + 1]]
    assert set(np.abs(np.diff(corner))) == {1}
    assert {corner[i] for i in turned} == {0, 3}
    assert set(np.diff(turned)) == {3}


def test_a_background_is_upright_and_not_mirrored(tmp_path):
    quarters = np.zeros((64, 64, 3), np.uint8)
    quarters[:32, :32], quarters[:32, 32:] = (255, 0, 0), (0, 255, 0)
    quarters[32:, :32], quarters[32:, 32:] = (0, 0, 255), (255, 255, 255)
    for name in ("a.png", "b.png"):
        Image.fromarray(quarters).save(tmp_path / name)
    config = ControlConfig(
        "cartpole-swingup", distraction="hard", distraction_types=("background",), backgrounds=str(tmp_path)
    )
    env = ControlEnv(config)
    env.reset(seed=0)
    seen = picture(env, 64)
    env.close()
    assert seen[4, 4].argmax() == 0
    assert seen[4, 60].argmax() == 1


def test_quality_has_finer_backgrounds_and_the_ground_is_as_translucent_as_published():
    for task, alpha in (("reacher-easy", 0.0), ("finger-spin", 0.3), ("cheetah-run", 1.0)):
        env = ControlEnv(ControlConfig(task, distraction="easy", rendering="quality"))
        model = env.simulation.physics.model
        assert model.mat("grid").rgba[3] == pytest.approx(alpha)
        assert model.tex_width[0] == model.tex_height[0] == 800
    env = ControlEnv(ControlConfig("finger-spin", distraction="easy"))
    assert env.simulation.physics.model.tex_width[0] == 256


def test_a_camera_is_chosen_by_its_name():
    side, back = (ControlEnv(dataclasses.replace(WALKER, camera=name)) for name in ("side", "back"))
    default = ControlEnv(WALKER)
    for env in (side, back, default):
        env.reset(seed=0)
    assert np.array_equal(picture(side), picture(default))
    assert not np.array_equal(picture(back), picture(default))
    for env in (side, back, default):
        env.close()
    with pytest.raises(UserError, match="choose one of side, back"):
        ControlEnv(dataclasses.replace(WALKER, camera="corner"))


def test_a_program_that_leaves_its_renderer_open_ends_in_silence():
    program = "from genreward_fast.envs.control_env import *; env = make(task='walker-walk'); env.reset(); env.render()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"genreward-fast\[control\]"):
        ControlEnv(WALKER)


def test_workers_do_what_one_environment_does_and_evaluation_sees_other_videos():
    alone = ControlEnv(HARD)
    alone.reset(seed=episode_seed(1, "train", 1, 0))
    with VectorEnv(HARD, 2, seed=1, split="train", sizes=(32,), sizes_at=lambda row: (32,) * (row == 2)) as envs:
        envs.reset()
        for t, action in enumerate(np.random.default_rng(0).uniform(-1, 1, (3, 2, 6)).astype(np.float32), start=1):
            step = envs.step(action)
            assert step.reward[1].item() == np.float32(alone.step(action[1])[1])
            assert set(step.frames) == ({32} if t == 2 else set())
            if t == 2:
                assert np.array_equal(step.frames[32][1].numpy(), picture(alone, 32))
    alone.close()
    with VectorEnv(HARD, 1, seed=1, split="eval", sizes=(), sizes_at=lambda row: ()) as envs:
        assert envs._setups[0].config == dataclasses.asdict(HARD.for_split("eval"))
    videos = {split: ControlEnv(HARD.for_split(split))._distractions._background._videos for split in ("train", "eval")}
    numbers = {split: {video.args for video in some} for split, some in videos.items()}
    assert not numbers["train"] & numbers["eval"]
