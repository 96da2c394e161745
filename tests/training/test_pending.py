"""Rewards that wait for their step."""

import numpy as np
import torch

from genreward_fast.training.pending import PendingRewards


def test_they_come_at_their_step_and_in_order():
    pending = PendingRewards(delay=10)
    pending.add(5, np.array([0]), np.array([1]), np.array([9]), torch.ones(1, 8))
    pending.add(7, np.array([1]), np.array([2]), np.array([10]), None)
    assert pending.pop_due(14) == []
    (envs, starts, upto, values), second = pending.pop_due(17)
    assert (envs.tolist(), starts.tolist(), upto.tolist()) == ([0], [1], [9])
    assert values.sum() == 8
    assert second[3] is None
    assert pending.pop_due(1000) == []


def test_a_discarded_episode_takes_its_rewards_along_and_no_others():
    pending = PendingRewards(delay=0)
    pending.add(0, np.array([0, 1]), np.array([1, 1]), np.array([9, 9]), torch.tensor([[1.0], [2.0]]))
    pending.add(0, np.array([0]), np.array([9]), np.array([17]), torch.tensor([[3.0]]))
    pending.drop(env=0, first_row=9)  # the episode that starts at row 9: the rewards of rows below stay
    assert [values.tolist() for *_, values in pending.pop_due(0)] == [[[1.0], [2.0]]]
    pending.add(0, np.array([0, 1]), np.array([1, 1]), np.array([9, 9]), torch.tensor([[1.0], [2.0]]))
    pending.drop(env=1, first_row=0)
    ((envs, starts, upto, values),) = pending.pop_due(0)
    assert (envs.tolist(), starts.tolist(), upto.tolist(), values.tolist()) == ([0], [1], [9], [[1.0]])
