"""The replay on disk: cost, exact resume, and files that are missing, cut off or foreign."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from genreward_fast.errors import UserError
from genreward_fast.training import replay_chunks
from genreward_fast.training.replay import Replay
from genreward_fast.types import Latents

ENVS, SLOTS, LENGTH = 2, 24, 4


def make(**changes):
    sizes = {"num_envs": ENVS, "capacity": ENVS * SLOTS, "sequence_length": LENGTH, "context": 1}
    sizes |= {"action_size": 1, "feature_dim": 2, "deter_size": 3, "stoch_size": 2, "image_size": 2}
    return Replay(**(sizes | changes))


def fill(replay, rows, *, first=False, release=True):
    """Appends rows whose action is their number; the first one begins an episode if `first`."""
    for row in range(rows):
        number = torch.from_numpy(replay.index.written.copy())
        replay.append(
            image=torch.zeros(ENVS, 2, 2, 3, dtype=torch.uint8) + number[:, None, None, None].to(torch.uint8),
            action=number[:, None].float(),
            reward=number.float() / 2,
            is_first=torch.full((ENVS,), first and row == 0),
            is_last=torch.zeros(ENVS, dtype=torch.bool),
            is_terminal=torch.zeros(ENVS, dtype=torch.bool),
            feature=number[:, None].float().expand(ENVS, 2),
            latents=Latents(number[:, None].float().expand(ENVS, 3), torch.zeros(ENVS, 2, dtype=torch.uint8)),
        )
    if release:
        replay.release(np.arange(ENVS), replay.index.written.copy())


def checkpoint(replay, folder):
    """Saves, and passes the state through JSON as a checkpoint might."""
    state = json.loads(json.dumps(replay.save(folder)))
    replay.commit(folder)
    return state


def resumed(folder, state, **changes):
    replay = make(**changes)
    replay.load(folder, state)
    return replay


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def same_batches(one, other, draws=5):
    for _ in range(draws):
        first, second = one.sample(6), other.sample(6)
        for name in ("image", "action", "reward", "is_first", "is_last", "feature", "deter", "stoch", "index"):
            assert torch.equal(getattr(first, name), getattr(second, name)), name
        assert torch.equal(one.sample_pairs(5).index, other.sample_pairs(5).index)


def test_a_resumed_replay_samples_what_the_saved_one_would_have(tmp_path):
    replay = make(seed=1)
    fill(replay, 40, first=True)
    replay.sample(3)  # leaves fresh stretches in the queue
    assert replay.index.queue
    state = checkpoint(replay, tmp_path)
    other = resumed(tmp_path, state, seed=2)
    same_batches(replay, other)
    fill(replay, 9)
    fill(other, 9)
    same_batches(replay, other)


def test_the_state_can_be_stored_without_pickled_objects(tmp_path):
    replay = make()
    fill(replay, 10, first=True)
    torch.save(replay.save(tmp_path / "replay"), tmp_path / "state.pt")
    resumed(tmp_path / "replay", torch.load(tmp_path / "state.pt", weights_only=True))


def test_only_new_rows_are_written(tmp_path):
    replay = make()
    fill(replay, 12, first=True)
    checkpoint(replay, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    size = sum(path.stat().st_size for path in before)
    fill(replay, 2)
    checkpoint(replay, tmp_path)
    new = [path for path in tmp_path.iterdir() if path not in before]
    assert len(new) == 1
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert new[0].stat().st_size < size
    checkpoint(replay, tmp_path)
    assert len(files(tmp_path)) == len(before) + 1


def test_rows_that_are_not_released_are_not_saved_and_gone_after_a_resume(tmp_path):
    replay = make()
    fill(replay, 10, first=True)
    fill(replay, 5, release=False)
    other = resumed(tmp_path, checkpoint(replay, tmp_path))
    assert other.index.written.tolist() == [10, 10]
    fill(other, 3, first=True)
    flags = other.store.arrays["flags"].view(ENVS, SLOTS, 3)
    assert flags[:, 9, 1].all()  # the cut episode
    assert flags[:, 10, 0].all()
    # The flag was set after row 9 had been saved; loading sets it again.
    last = resumed(tmp_path, checkpoint(other, tmp_path))
    assert last.store.arrays["flags"].view(ENVS, SLOTS, 3)[:, 9, 1].all()
    assert last.index.is_last[:, 9].all()


def test_the_newest_row_remembers_that_its_episode_was_cut(tmp_path):
    replay = make()
    fill(replay, 10, first=True)
    checkpoint(replay, tmp_path)
    fill(replay, 5, first=True, release=False)
    other = resumed(tmp_path, checkpoint(replay, tmp_path))
    assert other.index.is_last[:, 9].all()
    same_batches(replay, other)


def test_files_are_bounded(tmp_path):
    replay = make()
    row = replay.config.row_bytes()
    replay = make(chunk_bytes=5 * row)
    fill(replay, 12, first=True)
    state = checkpoint(replay, tmp_path)
    assert len(files(tmp_path)) == 5  # 24 rows, 5 at a time, across environments
    assert all(path.stat().st_size <= 5 * row + 1024 for path in tmp_path.iterdir())
    same_batches(replay, resumed(tmp_path, state))


def test_chunks_are_deleted_when_overwritten_and_not_before_the_commit(tmp_path):
    replay = make()
    fill(replay, 10, first=True)
    old = checkpoint(replay, tmp_path)
    fill(replay, 10)
    checkpoint(replay, tmp_path)
    fill(replay, 15)  # rows up to 10 are overwritten
    new = replay.save(tmp_path)
    first = old["chunks"][0]["file"]
    assert first in files(tmp_path)
    assert first not in [chunk["file"] for chunk in new["chunks"]]
    replay.commit(tmp_path)
    assert files(tmp_path) == sorted(chunk["file"] for chunk in new["chunks"])
    same_batches(replay, resumed(tmp_path, new))


def test_a_crash_between_save_and_commit_goes_back_to_the_old_checkpoint(tmp_path):
    replay = make()
    fill(replay, 20, first=True)
    state = checkpoint(replay, tmp_path)
    kept = files(tmp_path)
    twin = resumed(tmp_path, state)
    fill(replay, 18)
    replay.save(tmp_path)
    (tmp_path / ".replay-000002-abc.safetensors").write_bytes(b"half a chunk")
    (tmp_path / "notes.txt").write_text("not ours")
    other = resumed(tmp_path, state)
    assert files(tmp_path) == sorted([*kept, "notes.txt"])
    same_batches(twin, other)


def test_rows_on_disk_survive_a_rollback(tmp_path):
    replay = make()
    fill(replay, 10, first=True)
    state = checkpoint(replay, tmp_path)
    fill(replay, 4)
    assert replay.rollback(0, 3) == 10
    assert replay.rollback(1, 12) == 12
    fill(replay, 6, first=True)
    state = checkpoint(replay, tmp_path)
    same_batches(replay, resumed(tmp_path, state))


def test_another_capacity_keeps_the_newest_rows(tmp_path):
    replay = make()
    fill(replay, 40, first=True)
    state = checkpoint(replay, tmp_path)
    for slots in (10, 60):
        other = resumed(tmp_path, state, capacity=ENVS * slots)
        assert len(other) == ENVS * min(slots, SLOTS)
        assert other.sample(50).action.max() <= 39
        rows = range(40 - min(slots, SLOTS), 40)
        _, action, _ = other.rows(np.arange(ENVS), np.full(ENVS, rows[0]), len(rows))
        assert action[:, :, 0].tolist() == [list(rows)] * ENVS


def test_rows_overwritten_before_they_were_released_leave_no_gap_to_sample(tmp_path):
    replay = make()
    fill(replay, 10, first=True)
    checkpoint(replay, tmp_path)
    fill(replay, 40, release=False)
    state = checkpoint(replay, tmp_path)
    other = resumed(tmp_path, state)
    assert other.index.written.tolist() == other.index.oldest.tolist() == [26, 26]
    assert not other.can_sample()
    fill(other, 8, first=True)
    assert other.sample(30).action.min() >= 26


def damage(path, how):
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "cut off":
        path.write_bytes(data[: len(data) - 7])
    elif how == "cut in its header":
        path.write_bytes(data[:20])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(b"\x93NUMPY" + data)


@pytest.mark.parametrize("how", ["missing", "cut off", "cut in its header", "empty", "another format"])
def test_a_damaged_chunk_is_named_in_one_line(tmp_path, how):
    replay = make(chunk_bytes=500)
    fill(replay, 12, first=True)
    state = checkpoint(replay, tmp_path)
    path = tmp_path / state["chunks"][1]["file"]
    damage(path, how)
    before = files(tmp_path)
    with pytest.raises(UserError) as caught:
        resumed(tmp_path, state)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == before


def test_a_chunk_of_another_run_is_refused(tmp_path):
    ours, theirs = make(), make()
    for replay, folder in ((ours, tmp_path / "ours"), (theirs, tmp_path / "theirs")):
        fill(replay, 12, first=True)
        state = checkpoint(replay, folder)
    name = state["chunks"][0]["file"]
    (tmp_path / "theirs" / name).write_bytes((tmp_path / "ours" / name).read_bytes())
    with pytest.raises(UserError, match=f"{name}: belongs to another run"):
        resumed(tmp_path / "theirs", state)


def test_a_state_of_other_shapes_is_refused_by_name(tmp_path):
    replay = make()
    fill(replay, 12, first=True)
    state = checkpoint(replay, tmp_path)
    for name, value in (("feature_dim", 3), ("deter_dtype", "float32"), ("sequence_length", 5)):
        with pytest.raises(UserError, match=f"saved with {name}"):
            resumed(tmp_path, state, **{name: value})
    with pytest.raises(UserError, match="format"):
        resumed(tmp_path, {"format": 99})


def test_a_state_that_lists_too_few_chunks_is_refused(tmp_path):
    replay = make(chunk_bytes=500)
    fill(replay, 12, first=True)
    state = checkpoint(replay, tmp_path)
    state["chunks"].pop(1)
    with pytest.raises(UserError, match="lists no chunk with row"):
        resumed(tmp_path, state)


def test_a_disk_error_is_named_and_loses_nothing(tmp_path, monkeypatch):
    replay = make(chunk_bytes=200)
    fill(replay, 12, first=True)
    write, written = replay_chunks.save_file, []

    def fail_at_the_third(rows, path, metadata):
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(path)
        write(rows, path, metadata=metadata)

    monkeypatch.setattr(replay_chunks, "save_file", fail_at_the_third)
    with pytest.raises(UserError, match="No space left on device"):
        replay.save(tmp_path)
    assert len(files(tmp_path)) == 2
    monkeypatch.undo()
    state = checkpoint(replay, tmp_path)
    same_batches(replay, resumed(tmp_path, state))


def test_a_replay_is_saved_in_one_folder_and_loaded_only_when_new(tmp_path):
    replay = make()
    fill(replay, 12, first=True)
    state = checkpoint(replay, tmp_path / "one")
    with pytest.raises(UserError, match="earlier rows"):
        replay.save(tmp_path / "two")
    with pytest.raises(RuntimeError, match="before rows are appended"):
        replay.load(tmp_path / "one", state)


def test_an_empty_replay_can_be_saved_and_loaded(tmp_path):
    state = checkpoint(make(), tmp_path)
    assert not resumed(tmp_path, state).can_sample()
