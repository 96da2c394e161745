import dataclasses

import pytest

from genreward_fast.envs.env_config import EnvConfig
from genreward_fast.errors import UserError


def test_the_task_is_held_by_its_canonical_name():
    assert EnvConfig("Pick_Place-v3").task == "pick-place"
    assert EnvConfig("pick-place") == EnvConfig("PickPlace")


def test_an_episode_counts_repeats():
    assert EnvConfig("reach").steps == 256
    assert EnvConfig("reach", episode_length=256, action_repeat=2).steps == 128


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"task": "juggle"}, "juggle"),
        ({"camera": "behind"}, "behind"),
        ({"rendering": "pretty"}, "pretty"),
        ({"action_repeat": 0}, "action_repeat 0"),
        ({"episode_length": 0}, "episode_length 0"),
        ({"episode_length": 255, "action_repeat": 2}, "multiple"),
    ],
)
def test_bad_values_are_refused_in_one_line(values, names):
    with pytest.raises(UserError, match=names) as caught:
        EnvConfig(**{"task": "reach", **values})
    assert "\n" not in str(caught.value)


def test_replace_checks_too():
    with pytest.raises(UserError):
        dataclasses.replace(EnvConfig("reach"), camera="nowhere")
