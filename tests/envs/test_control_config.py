import json
from dataclasses import asdict, replace

import pytest

from genreward_fast.envs.control_config import DISTRACTION_TYPES, ControlConfig
from genreward_fast.errors import UserError


def test_defaults_are_the_published_ones():
    assert ControlConfig("walker_walk").task == "walker-walk"
    steps = {task: ControlConfig(task).steps for task in ("cartpole-swingup", "cheetah-run", "walker-walk")}
    assert steps == {"cartpole-swingup": 125, "cheetah-run": 250, "walker-walk": 500}
    assert ControlConfig("hopper-hop").action_repeat == 2
    assert ControlConfig("cheetah-run", action_repeat=1).steps == 1000
    assert ControlConfig("cheetah-run").action_size == 6


def test_it_survives_json():
    config = ControlConfig("cheetah-run", distraction="hard", distraction_types=("background", "color"))
    assert config.distraction_types == ("color", "background")
    assert ControlConfig(**json.loads(json.dumps(asdict(config)))) == config


def test_only_the_backgrounds_depend_on_the_split():
    config = ControlConfig("cheetah-run", distraction="hard")
    assert config.for_split("train") == config.for_split("demos") == config
    assert config.for_split("eval") == replace(config, split="eval") != config


def test_a_folder_is_held_by_its_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = ControlConfig("cheetah-run", distraction="easy", backgrounds="davis")
    assert config.backgrounds == str(tmp_path / "davis")


def test_its_description_names_what_distracts():
    assert ControlConfig("cheetah-run").description == "cheetah-run"
    config = ControlConfig("cheetah-run", distraction="hard")
    assert config.description == "cheetah-run, hard distractions"
    config = replace(config, dynamic_distractions=True, distraction_types=("camera", "color"))
    assert config.description == "cheetah-run, hard dynamic color and camera distractions"


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"task": "pick-place"}, "pick-place"),
        ({"rendering": "pretty"}, "pretty"),
        ({"action_repeat": 0}, "action_repeat 0"),
        ({"action_repeat": 3}, "multiple"),
        ({"distraction": "extreme"}, "extreme"),
        ({"distraction": "easy", "distraction_types": ("smell",)}, "smell"),
        ({"distraction": "easy", "distraction_types": ()}, "none is named"),
        ({"dynamic_distractions": True}, "dynamic"),
        ({"backgrounds": "davis"}, "davis"),
        ({"backgrounds": "davis", "distraction": "easy", "distraction_types": DISTRACTION_TYPES[:2]}, "davis"),
    ],
)
def test_bad_values_are_refused_in_one_line(values, names):
    with pytest.raises(UserError, match=names) as caught:
        ControlConfig(**{"task": "walker-walk", **values})
    assert "\n" not in str(caught.value)
