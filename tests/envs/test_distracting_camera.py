from types import SimpleNamespace

import numpy as np
import pytest

from genreward_fast.envs.distracting_camera import DistractingCamera, level, to_cartesian, to_spherical, turned

FIXED, TRACKING = 0, 2
SIDE = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # looks along +y, z is up
BETA = 0.3


def scene(mode=FIXED, position=(0.0, -4.0, 1.0), axes=SIDE, agent=(0.0, 0.0, 1.0)):
    model = SimpleNamespace(cam_mode=np.array([mode]), cam_bodyid=np.array([0]))
    data = SimpleNamespace(
        cam_xpos=np.array([position], float),
        cam_xmat=np.array(axes, float).reshape(1, 9),
        subtree_com=np.array([(0.0, 0.0, 0.0), agent]),
    )
    return model, data


def camera(beta=BETA, dynamic=False, seed=0, **options):
    model, data = scene(**options)
    made = DistractingCamera(model, data, 0, beta, dynamic=dynamic)
    made.reset(np.random.default_rng(seed))
    return made, data


def test_without_distraction_it_is_the_default_camera():
    for options in ({}, {"mode": TRACKING}, {"axes": np.eye(3), "position": (0.0, 0.0, 0.75)}):
        made, data = camera(beta=0.0, dynamic=True, **options)
        for _ in range(3):
            made.step()
        position, axes = made.pose()
        assert np.allclose(position, data.cam_xpos[0])
        assert np.allclose(axes, data.cam_xmat[0].reshape(3, 3))


def spherical_of(made, data, mode):
    center = data.subtree_com[1] if mode == TRACKING else np.zeros(3)
    return to_spherical(made.pose()[0] - center)


@pytest.mark.parametrize("mode", [FIXED, TRACKING])
def test_poses_fill_the_published_bounds_and_never_leave_them(mode):
    reach = np.pi / 2 * BETA
    default = to_spherical(np.array([0.0, -4.0, 1.0]) - (np.array([0.0, 0.0, 1.0]) if mode == TRACKING else 0))
    places = np.array([spherical_of(*camera(mode=mode, seed=seed), mode) for seed in range(300)])
    made, data = camera(mode=mode, dynamic=True)
    walk = []
    for _ in range(2000):
        made.step()
        walk.append(spherical_of(made, data, mode))
    low = np.array([default[0] * (1 - 0.5 * BETA), default[1] - reach, default[2] - reach])
    high = np.array([default[0] * (1 + 1.5 * BETA), default[1] + reach, min(default[2] + reach, np.pi / 2)])
    for values in (places, np.array(walk)):
        assert (values > low - 1e-9).all()
        assert (values < high + 1e-9).all()
        assert (np.ptp(values, axis=0) > 0.8 * (high - low)).all()


def test_it_looks_at_what_the_default_camera_looks_at():
    for seed in range(5):
        made, data = camera(seed=seed, agent=(0.5, 0.0, 1.0))
        position, axes = made.pose()
        target = np.array([0.0, -4 + np.hypot(4, 0.5), 1.0])  # ahead, as far as the agent is
        forward = (target - position) / np.linalg.norm(target - position)
        assert np.allclose(-axes[:, 2], forward)
        assert np.allclose(axes.T @ axes, np.eye(3))
        assert np.linalg.det(axes) == pytest.approx(1)
        data.subtree_com[1] += (3, 0, 0)  # a camera that is fixed does not turn after the agent
        assert np.allclose(made.pose()[1], axes)


def test_one_that_follows_goes_on_following():
    made, data = camera(mode=TRACKING)
    position, axes = made.pose()
    data.cam_xpos[0] += (5, 0, 0)
    data.subtree_com[1] += (5, 0, 0)
    assert np.allclose(made.pose()[0], position + np.array([5, 0, 0]))
    assert np.allclose(made.pose()[1], axes)


def test_the_roll_is_bounded():
    reach = np.pi / 2 * BETA
    rolls = []
    for seed in range(200):
        axes = camera(seed=seed)[0].pose()[1]
        rolls.append(np.arctan2(axes[2, 0], axes[2, 1]))  # how far the horizon is from level
    assert np.abs(rolls).max() < reach + 0.35  # pitch enlarges it a little
    assert np.ptp(rolls) > 1.6 * reach
    made, _ = camera(beta=0.2, dynamic=True)
    for _ in range(500):
        before = made._roll
        made.step()
        assert abs(made._roll) <= np.pi / 2 * 0.2 + 1e-12
        assert abs(made._roll - before) <= np.pi / 50 * 0.2 + 1e-12


def test_its_speed_is_bounded_in_proportion_to_its_distance():
    made, _ = camera(dynamic=True)
    positions = []
    for _ in range(500):
        positions.append(made.pose()[0])
        made.step()
    moved = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    assert moved.max() <= 0.4 * BETA * np.sqrt(17) / 4 + 1e-9
    assert moved.max() > 0.1 * BETA
    static, _ = camera()
    before = static.pose()
    static.step()
    assert all(np.array_equal(one, other) for one, other in zip(before, static.pose()))


def test_straight_above_it_is_on_both_sides_and_moves_without_jumps():
    options = {"axes": np.eye(3), "position": (0.0, 0.0, 0.75), "agent": (0.0, 0.0, 0.0)}
    made, _ = camera(dynamic=True, **options)
    sides = [camera(seed=seed, **options)[0].pose()[0][0] for seed in range(100)]
    assert min(sides) < -0.1 < 0.1 < max(sides)
    positions, ups = [], []
    for _ in range(1500):
        made.step()
        position, axes = made.pose()
        positions.append(position)
        ups.append(axes[:, 1])
    moved = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    assert moved.max() < 2.6 * 0.4 * BETA * 0.75 / 4  # a step, and π/2 of a step at most back into the bounds
    assert np.array(ups)[:, 1].min() > 0.5  # the picture never turns round


def test_helpers():
    rng = np.random.default_rng(0)
    for _ in range(20):
        vector = rng.standard_normal(3)
        assert np.allclose(to_cartesian(*to_spherical(vector)), vector)
        forward = vector / np.linalg.norm(vector)
        horizontal = level(forward)
        assert np.allclose(horizontal.T @ horizontal, np.eye(3))
        assert np.allclose(-horizontal[:, 2], forward)
        assert horizontal[2, 0] == pytest.approx(0)
        assert horizontal[2, 1] > 0
        if forward[1] > -0.9:  # half a turn has no smallest one
            assert np.allclose(-turned(SIDE, forward)[:, 2], forward)
            assert np.allclose(turned(SIDE, forward).T @ turned(SIDE, forward), np.eye(3))
