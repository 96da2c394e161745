from __future__ import annotations

import pytest

from genreward_fast.envs.tasks import TASKS, describe
from genreward_fast.errors import UserError
from genreward_fast.goals.captions import captions


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_several_wordings(task: str) -> None:
    wordings = captions(task)
    assert wordings[0] == describe(task)
    assert len(set(wordings)) == len(wordings) >= 4
    for wording in wordings:
        assert wording == wording.strip().rstrip(".")
        assert len(wording.split()) >= 5


def test_no_two_tasks_share_a_wording() -> None:
    everything = [wording for task in TASKS for wording in captions(task)]
    assert len(set(everything)) == len(everything)


def test_names_of_any_spelling() -> None:
    assert captions("PickPlace-v3") == captions("pick-place")
    with pytest.raises(UserError, match="no such task"):
        captions("fly")
