import pytest
from metaworld.env_dict import ENV_CLS_MAP

from genreward_fast.envs.tasks import PAPER_TASKS, TASKS, canonical, describe, task_list
from genreward_fast.errors import UserError


def test_the_names_are_meta_worlds():
    assert sorted(f"{task}-v3" for task in TASKS) == sorted(ENV_CLS_MAP)
    assert len(TASKS) == 50
    assert set(PAPER_TASKS) < set(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_every_spelling_of_a_name_is_understood(task):
    snake, camel = task.replace("-", "_"), "".join(word.capitalize() for word in task.split("-"))
    for name in (task, f"{task}-v3", snake, f"{snake}_v3", task.upper(), camel, f"{camel}V3", f" {task} "):
        assert canonical(name) == task


def test_an_unknown_name_is_answered_with_the_closest_ones():
    with pytest.raises(UserError, match=r"'pick-plase': .*pick-place") as caught:
        canonical("pick-plase")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="assembly"):
        canonical("zzzz")
    with pytest.raises(UserError, match=r"''"):
        canonical("")


def test_an_old_version_is_refused():
    with pytest.raises(UserError, match=r"version 3.*'pick-place'"):
        canonical("pick-place-v2")


def test_every_task_has_its_own_description():
    sentences = [describe(task) for task in TASKS]
    assert len(set(sentences)) == 50
    assert all(len(sentence.split()) >= 5 and not sentence.endswith(".") for sentence in sentences)
    assert describe("PickPlace") == describe("pick-place")
    with pytest.raises(UserError):
        describe("juggle")


def test_lists_of_tasks():
    assert task_list("all") == TASKS
    assert task_list("paper") == PAPER_TASKS
    assert task_list("reach, PickPlace,reach-v3") == ("reach", "pick-place")
    for names, says in (("", "none is named"), (" , ", "none is named"), ("reach,fly", "'fly'")):
        with pytest.raises(UserError, match=says):
            task_list(names)
