"""Rows of clips that lie one behind the other."""

import torch

from genreward_fast.rewards.frame_model.expert_frames import join_clips


def clips():
    return join_clips({"a": torch.zeros(3, 64, 64, 3).byte(), "b": torch.ones(5, 64, 64, 3).byte()})


def test_clips_are_joined():
    expert = clips()
    assert expert.first.tolist() == [0, 0, 0, 3, 3, 3, 3, 3]
    assert expert.clips == [{"name": "a", "frames": 3}, {"name": "b", "frames": 5}]
    assert expert.frames[:3].sum() == 0
    other = join_clips({"a": expert.frames[:4], "b": expert.frames[4:]})
    assert other.sha256 != expert.sha256
    assert clips().sha256 == expert.sha256


def test_rows_that_lead_to_a_frame_stay_in_its_clip():
    rows = clips().leading_to(3)
    assert rows.tolist() == [
        [0, 0, 0], [0, 0, 1], [0, 1, 2], [3, 3, 3], [3, 3, 4], [3, 4, 5], [4, 5, 6], [5, 6, 7],
    ]  # fmt: skip


def test_windows_stay_in_their_clip():
    rows, valid = clips().windows(4)
    assert rows.tolist() == [[0, 1, 2, 2], [3, 4, 5, 6], [4, 5, 6, 7]]
    assert valid.tolist() == [[True, True, True, False], [True] * 4, [True] * 4]
    rows, valid = clips().windows(2)
    assert rows.tolist() == [[0, 1], [1, 2], [3, 4], [4, 5], [5, 6], [6, 7]]
    assert valid.all()
