"""The worker processes, with an environment that costs nothing and fails on demand."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from genreward_fast.envs.seeds import episode_seed
from genreward_fast.envs.vector import VectorEnv, WorkerError
from genreward_fast.errors import UserError

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # the workers get this process's import path
from fake_worker_env import FakeConfig  # noqa: E402

ZERO = np.zeros((2, 4), np.float32)


def vector(config=FakeConfig(), num_envs=2, **options):  # noqa: B008  it is frozen
    values = {
        "seed": 0,
        "split": "train",
        "sizes": (2, 3),
        "sizes_at": lambda row: (2,),
        "factory": "fake_worker_env:make",
        **options,
    }
    return VectorEnv(config, num_envs, **values)


def gone(pid):
    """Whether a process has ended (it may still wait for its parent to notice)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def test_rows_of_an_episode_and_of_the_next_one():
    with vector(FakeConfig(length=3)) as envs:
        steps = [envs.reset()] + [envs.step(np.full((2, 4), [[1.0], [2.0]])) for _ in range(5)]
    assert [step.row.tolist() for step in steps] == [[row, row] for row in (0, 1, 2, 3, 0, 1)]
    assert [step.is_first[0].item() for step in steps] == [True, False, False, False, True, False]
    assert [step.is_last[0].item() for step in steps] == [False, False, False, True, False, False]
    assert [step.success[0].item() for step in steps] == [False, False, True, False, False, False]
    assert [step.reward.tolist() for step in steps] == [[0, 0]] + [[4, 8]] * 3 + [[0, 0], [4, 8]]
    assert not any(step.is_terminal.any() or step.discarded.any() for step in steps)
    step = steps[0]
    assert step.reward.dtype == torch.float32
    assert step.row.dtype == torch.int64
    assert all(x.dtype == torch.bool for x in (step.success, step.is_first, step.is_last, step.discarded))


def test_only_the_sizes_of_the_row_are_rendered():
    with vector(sizes_at=lambda row: (2, 3) if row % 2 == 0 else (2,)) as envs:
        first = envs.reset()
        assert {size: frame.shape for size, frame in first.frames.items()} == {2: (2, 2, 2, 3), 3: (2, 3, 3, 3)}
        assert first.frames[2].dtype == torch.uint8
        digit = [episode_seed(0, "train", e, 0) % 10 for e in range(2)]
        assert (first.frames[3][0] == digit[0]).all()
        second = envs.step(ZERO)
        assert list(second.frames) == [2]
        assert (second.frames[2][1] == 10 + digit[1]).all()
        third = envs.step(ZERO)
        assert (third.frames[3][1] == 20 + digit[1]).all()


def test_frames_stay_as_they_are_during_the_next_step():
    with vector() as envs:
        first = envs.reset()
        before = first.frames[2].clone()
        second = envs.step(ZERO)
        assert torch.equal(first.frames[2], before)
        assert not torch.equal(second.frames[2], before)
        envs.step(ZERO)
        assert not torch.equal(first.frames[2], before)  # its half of the memory is in use again
        kept = second.frames[2]
    assert kept.float().mean() > 0  # still there after close


def test_no_frames_at_all():
    with vector(sizes=(), sizes_at=lambda row: ()) as envs:
        assert envs.reset().frames == {}
        assert envs.step(ZERO).row.tolist() == [1, 1]


def test_environments_that_are_out_of_step_render_what_each_needs():
    with vector(FakeConfig(length=9), sizes_at=lambda row: (3,) if row == 2 else (2,), timeout=20) as envs:
        envs.reset()
        os.kill(envs.pids[0], signal.SIGKILL)
        assert envs.step(ZERO).row.tolist() == [0, 1]
        step = envs.step(ZERO)
        assert step.row.tolist() == [1, 2]
        assert sorted(step.frames) == [2, 3]
        digit = [episode_seed(0, "train", 0, 1) % 10, episode_seed(0, "train", 1, 0) % 10]
        assert (step.frames[2][0] == 10 + digit[0]).all()
        assert (step.frames[3][1] == 20 + digit[1]).all()
        assert (step.frames[3][0] == 0).all()  # never rendered


def test_seeds_differ_between_environments_splits_and_episodes():
    digits = []
    for split in ("train", "eval"):
        with vector(FakeConfig(length=1), num_envs=3, split=split, seed=5) as envs:
            step = envs.reset()
            for episode in range(3):
                expected = [episode_seed(5, split, e, episode) % 10 for e in range(3)]
                assert step.frames[2][:, 0, 0, 0].tolist() == expected
                digits += expected
                envs.step(np.zeros((3, 4)))
                step = envs.step(np.zeros((3, 4)))
    assert len(set(digits)) > 4


def test_a_killed_worker_is_replaced_and_its_episode_discarded():
    with vector(FakeConfig(length=50), num_envs=3) as envs:
        envs.reset()
        envs.step(np.zeros((3, 4)))
        pids = envs.pids
        os.kill(pids[1], signal.SIGKILL)
        step = envs.step(np.ones((3, 4)))
        assert step.discarded.tolist() == [False, True, False]
        assert step.is_first.tolist() == [False, True, False]
        assert step.row.tolist() == [2, 0, 2]
        assert step.reward.tolist() == [4, 0, 4]
        assert step.frames[2][1, 0, 0, 0] == episode_seed(0, "train", 1, 1) % 10  # a fresh seed
        assert envs.restarts == 1
        assert [pid == old for pid, old in zip(envs.pids, pids)] == [True, False, True]
        step = envs.step(np.ones((3, 4)))
        assert not step.discarded.any()
        assert step.row.tolist() == [3, 1, 3]


def test_a_worker_killed_while_it_steps_is_replaced():
    with vector(FakeConfig(length=50)) as envs:
        envs.reset()
        os.kill(envs.pids[0], signal.SIGSTOP)
        envs.send(ZERO)
        os.kill(envs.pids[0], signal.SIGKILL)
        assert envs.receive().discarded.tolist() == [True, False]


def test_death_between_episodes_discards_nothing():
    with vector(FakeConfig(length=1)) as envs:
        envs.reset()
        assert envs.step(ZERO).is_last.all()
        os.kill(envs.pids[0], signal.SIGKILL)
        step = envs.step(ZERO)
        assert step.is_first.all()
        assert not step.discarded.any()
        assert envs.restarts == 1


def test_a_worker_that_hangs_is_replaced():
    with vector(FakeConfig(length=50), timeout=4) as envs:
        envs.reset()
        stopped = envs.pids[1]
        os.kill(stopped, signal.SIGSTOP)
        assert envs.step(ZERO).discarded.tolist() == [False, True]
        assert envs.restarts == 1
        assert gone(stopped)


def test_deaths_count_only_without_a_good_step_between_them():
    with vector(FakeConfig(length=50)) as envs:
        envs.reset()
        for _ in range(4):
            os.kill(envs.pids[0], signal.SIGKILL)
            assert envs.step(ZERO).discarded.tolist() == [True, False]
            assert not envs.step(ZERO).discarded.any()
        assert envs.restarts == 4


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (FakeConfig(fail="exit", fail_at=1), r"(?s)died 3 times.*status 9.*going down"),
        (FakeConfig(fail="exit-at-reset"), r"(?s)died 3 times.*status 7.*no luck at reset"),
    ],
)
def test_workers_that_keep_dying_end_the_run_with_what_they_printed(config, says):
    envs = vector(config, num_envs=1)

    def run():
        envs.reset()
        for _ in range(5):
            envs.step(ZERO[:1])

    with pytest.raises(WorkerError, match=says):
        run()
    assert all(gone(pid) for pid in envs.pids)
    with pytest.raises(RuntimeError, match="closed"):
        envs.reset()


def test_an_exception_in_an_environment_is_shown_with_its_traceback():
    envs = vector(FakeConfig(fail="exception", fail_at=2))
    envs.reset()
    envs.step(ZERO)
    with pytest.raises(WorkerError, match=r"(?s)fake_worker_env\.py.*ZeroDivisionError: the fake failed on purpose"):
        envs.step(ZERO)
    assert all(gone(pid) for pid in envs.pids)


def test_a_user_error_in_an_environment_stays_one_line():
    envs = vector(FakeConfig(fail="user", fail_at=1))
    envs.reset()
    with pytest.raises(UserError, match=r"^the fake refuses this value$"):
        envs.step(ZERO)


def test_an_environment_that_cannot_be_made_is_reported():
    with pytest.raises(WorkerError, match="no_such_field"):
        vector(factory="fake_worker_env:make_nothing").reset()
    with pytest.raises(WorkerError, match="no_such_module"):
        vector(factory="no_such_module:make").reset()


def test_a_worker_starts_without_torch():
    with vector(factory="fake_worker_env:make_without_torch") as envs:
        envs.reset()


def test_the_workers_outlive_signals_meant_for_the_parent():
    with vector(FakeConfig(length=50)) as envs:
        envs.reset()
        for pid in envs.pids:
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGINT)
        assert not envs.step(ZERO).discarded.any()
        assert envs.restarts == 0


def test_close_ends_the_workers():
    envs = vector()
    envs.reset()
    pids = envs.pids
    envs.send(ZERO)  # also in the middle of a step
    envs.close()
    envs.close()
    assert all(gone(pid) for pid in pids)
    with pytest.raises(RuntimeError, match="closed"):
        envs.step(ZERO)


def test_the_workers_end_with_a_parent_that_is_killed():
    script = (
        f"import sys, time; sys.path.insert(0, {str(HERE)!r})\n"
        "from test_vector import vector\n"
        "envs = vector(); envs.reset(); print(*envs.pids, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    assert not any(gone(pid) for pid in pids)
    parent.kill()
    assert parent.communicate()[1] == ""  # nothing complains about memory that was left behind
    wait_until(lambda: all(gone(pid) for pid in pids))


def test_a_parent_that_forgets_to_close_leaves_nothing_behind():
    script = (
        f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
        "from test_vector import vector\n"
        "envs = vector(); envs.reset(); print(*envs.pids)"
    )
    before = set(os.listdir("/dev/shm"))
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert result.stderr == ""
    assert set(os.listdir("/dev/shm")) <= before
    wait_until(lambda: all(gone(int(pid)) for pid in result.stdout.split()))


def test_a_resumed_run_goes_on_with_new_episodes():
    with vector(FakeConfig(length=1)) as envs:
        envs.reset()
        envs.step(ZERO)
        envs.step(ZERO)  # the second episode
        state = envs.state()
    assert state == {"episodes": [2, 2], "restarts": 0}
    with vector(num_envs=3) as envs:
        envs.set_state(state)
        step = envs.reset()
        expected = [episode_seed(0, "train", e, episode) % 10 for e, episode in enumerate((2, 2, 0))]
        assert step.frames[2][:, 0, 0, 0].tolist() == expected
        assert envs.state()["episodes"] == [3, 3, 1]


def test_actions_are_checked_before_anything_is_sent():
    with vector() as envs:
        with pytest.raises(RuntimeError, match="reset"):
            envs.step(ZERO)
        envs.reset()
        with pytest.raises(ValueError, match=r"\(2, 4\), not \(2, 3\)"):
            envs.send(np.zeros((2, 3)))
        bad = ZERO.copy()
        bad[1, 2] = np.nan
        with pytest.raises(ValueError, match="environment 1"):
            envs.send(bad)
        assert envs.step(torch.ones(2, 4, requires_grad=True)).reward.tolist() == [4, 4]
        with pytest.raises(RuntimeError, match=r"send\(\)"):
            envs.receive()
        envs.send(ZERO)
        with pytest.raises(RuntimeError, match=r"receive\(\)"):
            envs.send(ZERO)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"num_envs": 0}, UserError),
        ({"seed": -1}, UserError),
        ({"sizes": (0,)}, UserError),
        ({"sizes": (8192,)}, UserError),
        ({"split": "test"}, ValueError),
    ],
)
def test_bad_options_are_refused(options, error):
    with pytest.raises(error):
        vector(**options)


def test_a_size_that_was_not_announced_is_refused():
    envs = vector(sizes=(2,), sizes_at=lambda row: (5,))
    with pytest.raises(ValueError, match=r"sizes_at\(0\) asks for \[5\]"):
        envs.reset()
    assert all(gone(pid) for pid in envs.pids)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_frames_can_be_copied_without_waiting():
    with vector(pin_memory=True) as envs:
        frames = envs.reset().frames[2]
        assert frames.is_pinned()
        assert torch.equal(frames.to("cuda", non_blocking=True).cpu(), frames)
