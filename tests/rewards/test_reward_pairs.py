import numpy as np
import pytest
import torch

from genreward_fast.errors import UserError
from genreward_fast.rewards.pairs import PairMemory


@pytest.mark.parametrize("capacity", [10, 26, 200])
def test_pairs_are_consecutive_rows_of_one_episode(capacity):
    memory = PairMemory(2, capacity, 1, 1, "cpu")
    random = np.random.default_rng(0)
    value, last_written = 0.0, {}
    row = np.zeros(2, int)
    for _ in range(60):
        envs = np.flatnonzero(random.random(2) < 0.8)
        starts = row[envs] == 0
        values = torch.tensor([[1000.0 * env + 100 * 0 + last_written.get(env, 0)] for env in envs]).reshape(-1, 1)
        memory.append(envs, values, values + 0.5, starts)
        for env in envs:
            # The next row of the same episode is one greater; a new episode skips a number.
            row[env] = (row[env] + 1) % 7
            last_written[env] = last_written.get(env, 0) + (1 if row[env] else 2)
        value += 1
    batch = memory.sample(500)
    feature = batch.feature.squeeze(-1)
    assert torch.equal(feature[:, 1] - feature[:, 0], torch.ones(500))
    torch.testing.assert_close(batch.action.squeeze(-1), feature + 0.5)
    assert not batch.is_first[:, 1].any()
    assert len(feature.unique(dim=0)) == len(memory)  # 500 draws find all of them
    newest = {env: 1000 * env + last_written[env] for env in (0, 1)}
    for env in (0, 1):
        own = feature[(feature[:, 0] // 1000) == env]
        assert own.min() >= newest[env] - capacity // 2 - capacity // 2 // 7 - 3  # only the newest rows are left


def test_one_row_is_no_pair():
    memory = PairMemory(1, 10, 1, 1, "cpu")
    memory.append(np.zeros(1, int), torch.zeros(1, 1), torch.zeros(1, 1), np.ones(1, bool))
    assert len(memory) == 0
    memory.append(np.zeros(1, int), torch.zeros(1, 1), torch.zeros(1, 1), np.zeros(1, bool))
    assert len(memory) == 1


def test_too_small_a_memory():
    with pytest.raises(UserError, match="use 8"):
        PairMemory(4, 7, 1, 1, "cpu")


def test_a_memory_of_whole_episodes_is_what_appending_them_makes(fresh_generator):
    lengths = (3, 1, 7)
    episodes = [
        (torch.randn(length, 2, generator=fresh_generator), torch.randn(length, 4, generator=fresh_generator))
        for length in lengths
    ]
    appended = PairMemory(1, sum(lengths), 2, 4, "cpu", seed=5)
    filled = PairMemory.of_episodes(episodes, "cpu", seed=5)
    for feature, action in episodes:
        for row in range(len(action)):
            appended.append(np.zeros(1, int), feature[row, None], action[row, None], np.array([row == 0]))
    assert len(filled) == sum(lengths) - len(lengths)
    for _ in range(2):
        assert len(filled) == len(appended)
        ours, theirs = filled.sample(200), appended.sample(200)
        for name in ("feature", "action", "is_first", "index"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))
        for memory in (filled, appended):  # a full memory goes on in its first slot
            for row in range(4):
                memory.append(np.zeros(1, int), torch.full((1, 2), 9.0), torch.zeros(1, 4), np.array([row == 0]))
    with pytest.raises(UserError, match="too small"):
        PairMemory.of_episodes([(torch.zeros(1, 2), torch.zeros(1, 4))], "cpu")
