import numpy as np
import pytest

from genreward_fast.envs.env_config import CAMERAS, EnvConfig
from genreward_fast.envs.metaworld_env import MetaWorldEnv
from genreward_fast.envs.renderer import UPSIDE_DOWN, Renderer
from genreward_fast.errors import UserError

import mujoco  # isort: skip  after the renderer, which chooses the OpenGL backend


@pytest.fixture(scope="module")
def simulation():
    env = MetaWorldEnv(EnvConfig("pick-place"))
    env.reset(seed=0)
    return env.simulation


def pictures(simulation, camera, sizes, **options):
    renderer = Renderer(simulation.model, simulation.data, camera, **options)
    try:
        return renderer.render(sizes)
    finally:
        renderer.close()


def official(simulation, camera, size):
    """MuJoCo's own renderer, which shows Meta-World's corner cameras upside down."""
    renderer = mujoco.Renderer(simulation.model, size, size)
    renderer.update_scene(simulation.data, camera)
    picture = renderer.render()
    renderer.close()
    return picture


def height_of_the_wood(picture):
    """Where the table's brown pixels are on average: 0 is the top row, 1 the lowest."""
    red, green, blue = np.moveaxis(picture.astype(int), -1, 0)
    brown = (red - blue > 15) & (red - green < 50)  # the robot is red
    return np.nonzero(brown)[0].mean() / len(picture)


def test_corner_pictures_are_upright_and_otherwise_mujocos(simulation):
    ours = pictures(simulation, "corner", (64,), quality=True)[64].astype(int)
    theirs = official(simulation, "corner", 64).astype(int)
    assert np.abs(ours - theirs[::-1, ::-1]).mean() < 0.1  # edges are sampled at other points when a camera is rolled
    assert np.abs(ours - theirs).mean() > 10
    assert height_of_the_wood(ours) > 0.6
    assert height_of_the_wood(theirs) < 0.4


@pytest.mark.parametrize("camera", sorted(UPSIDE_DOWN))
def test_every_corner_camera_has_the_world_upright(simulation, camera):
    renderer = Renderer(simulation.model, simulation.data, camera)
    renderer.update()
    assert all(view.up[2] > 0.5 for view in renderer._scene.camera)
    renderer.close()


def test_other_cameras_are_left_as_they_are(simulation):
    ours = pictures(simulation, "behindGripper", (64,), quality=True)[64]
    assert np.array_equal(ours, official(simulation, "behindGripper", 64))


def test_the_cameras_are_the_models(simulation):
    model = simulation.model
    assert sorted(CAMERAS) == sorted(model.cam(i).name for i in range(model.ncam))
    assert set(CAMERAS) > UPSIDE_DOWN


def test_the_fast_mode_changes_pixels_by_a_known_amount(simulation):
    fast = pictures(simulation, "corner2", (64,))[64].astype(int)
    quality = pictures(simulation, "corner2", (64,), quality=True)[64].astype(int)
    # What it leaves out are shadows, reflections (both change brightness in places) and smooth edges.
    assert 1 < np.abs(fast - quality).mean() < 25
    assert np.corrcoef(fast.ravel(), quality.ravel())[0, 1] > 0.9


def test_any_list_of_sizes_comes_from_one_scene_update(simulation, monkeypatch):
    renderer = Renderer(simulation.model, simulation.data, "corner")
    updates, draws = [], []
    update, draw = renderer.update, renderer.draw
    monkeypatch.setattr(renderer, "update", lambda: (updates.append(1), update()))
    monkeypatch.setattr(renderer, "draw", lambda size: (draws.append(size), draw(size)))
    assert renderer.render(()) == {}
    assert not updates
    result = renderer.render((32, 96, 32))
    assert {size: picture.shape for size, picture in result.items()} == {32: (32, 32, 3), 96: (96, 96, 3)}
    assert all(picture.dtype == np.uint8 for picture in result.values())
    assert len(updates) == 1
    assert draws == [32, 96]
    small = result[96].reshape(32, 3, 32, 3, 3).mean((1, 3))
    assert np.abs(small - result[32]).mean() < 8  # the same view
    renderer.close()


def test_a_size_beyond_the_frame_buffer_enlarges_it(simulation):
    first = pictures(simulation, "corner", (80,), max_size=80)[80]
    assert np.array_equal(first, pictures(simulation, "corner", (80,), max_size=16)[80])


def test_pictures_are_written_where_they_are_wanted(simulation):
    renderer = Renderer(simulation.model, simulation.data, "corner")
    memory = np.zeros((2, 32, 32, 3), np.uint8)
    result = renderer.render((32,), {32: memory[1]})
    assert np.shares_memory(result[32], memory)
    assert memory[1].any()
    assert not memory[0].any()
    with pytest.raises(ValueError, match="broadcast"):
        renderer.render((32,), {32: np.zeros((31, 32, 3), np.uint8)})
    with pytest.raises(TypeError):
        renderer.render((32,), {32: np.zeros((32, 32, 3), np.float32)})
    renderer.close()


def test_two_renderers_do_not_disturb_each_other(simulation):
    alone = pictures(simulation, "corner", (32,))[32]
    one = Renderer(simulation.model, simulation.data, "corner")
    other = Renderer(simulation.model, simulation.data, "corner2")
    assert np.array_equal(one.render((32,))[32], alone)
    assert not np.array_equal(other.render((32,))[32], alone)
    other.close()
    assert np.array_equal(one.render((32,))[32], alone)
    one.close()


def test_the_model_is_left_as_it_was(simulation):
    screen, detail = simulation.model.vis.global_, simulation.model.vis.quality
    before = screen.offwidth, screen.offheight, detail.offsamples, detail.shadowsize
    assert detail.offsamples > 0
    pictures(simulation, "corner", (16,))
    assert before == (screen.offwidth, screen.offheight, detail.offsamples, detail.shadowsize)


def test_an_unknown_camera_is_refused(simulation):
    with pytest.raises(UserError, match=r"'sideways'.*corner2"):
        Renderer(simulation.model, simulation.data, "sideways")


def test_a_closed_renderer_says_so(simulation):
    renderer = Renderer(simulation.model, simulation.data, "corner")
    renderer.close()
    renderer.close()
    with pytest.raises(RuntimeError, match="closed"):
        renderer.render((16,))
