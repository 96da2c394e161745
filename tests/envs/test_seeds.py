import pytest

from genreward_fast.envs.seeds import episode_seed


def test_no_two_episodes_share_a_seed():
    seeds = {
        episode_seed(seed, split, env, episode)
        for seed in range(3)
        for split in ("train", "eval", "demos")
        for env in range(8)
        for episode in range(20)
    }
    assert len(seeds) == 3 * 3 * 8 * 20


def test_a_seed_can_be_had_again():
    assert episode_seed(1, "train", 2, 3) == episode_seed(1, "train", 2, 3)
    assert 0 <= episode_seed(1, "train", 2, 3) < 2**64


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="validation"):
        episode_seed(0, "validation", 0, 0)
