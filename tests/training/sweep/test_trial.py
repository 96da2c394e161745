"""The process of a trial and who watches it, without Ray."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from genreward_fast.errors import UserError
from genreward_fast.files import read_json
from genreward_fast.training.checkpoint import RunLock
from genreward_fast.training.sweep.folder import SweepFolder
from genreward_fast.training.sweep.progress import Reading, RunProgress
from genreward_fast.training.sweep.trial import TrialProcess


def folder_of(job):
    return SweepFolder(job.folder).run(job.name)


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


def test_killed_it_goes_on_from_its_checkpoint(make_job, expected_sum):
    job = make_job(plan={"0": {"kill_at": 12}})
    killed = TrialProcess().run(job)
    assert (killed.status, killed.finished, killed.hopeless) == (-signal.SIGKILL, False, False)
    assert "SIGKILL" in killed.reason
    assert TrialProcess().run(job).finished
    summary = read_json(folder_of(job).summary)
    assert summary["began_at"] == [0, 10]
    assert summary["sum"] == expected_sum(0)
    assert SweepFolder(job.folder).log(job.name).read_text().count("---") == 2


def test_bad_input_is_hopeless_and_its_last_line_the_reason(make_job):
    outcome = TrialProcess().run(make_job(plan={"0": {"exit": 2}}))
    assert (outcome.hopeless, outcome.reason) == (True, "refused, status 2")
    outcome = TrialProcess().run(make_job(plan={"0": {"exit": 1}}))
    assert (outcome.hopeless, outcome.status, outcome.reason) == (False, 1, "refused, status 1")


def test_a_stop_is_a_checkpoint(make_job):
    job, trial, outcomes = make_job(plan={"0": {"pause": 0.1}}, arguments=("--steps", "9999", "--seed", "0")), None, []
    trial = TrialProcess()
    thread = threading.Thread(target=lambda: outcomes.append(trial.run(job)))
    thread.start()
    wait_for(lambda: RunProgress(folder_of(job)).read().step > 2)
    trial.stop()
    thread.join(60)
    assert outcomes[0].status == 128 + signal.SIGTERM
    assert read_json(folder_of(job).path / "checkpoint.json")["step"] == RunProgress(folder_of(job)).read().step


def test_it_ends_with_a_checkpoint_when_its_watcher_dies(make_job):
    job = make_job(plan={"0": {"pause": 0.1}}, arguments=("--steps", "9999", "--seed", "0"))
    code = (
        f"from pathlib import PosixPath\nfrom genreward_fast.training.sweep.trial import *\nTrialProcess().run({job!r})"
    )
    watcher = subprocess.Popen([sys.executable, "-c", code])
    wait_for(lambda: RunProgress(folder_of(job)).read().step > 2)
    watcher.kill()
    watcher.wait()
    assert TrialProcess().run(replace(job, program=("/bin/true",))).finished  # waits for the folder's lock
    with RunLock(folder_of(job).path):
        done = RunProgress(folder_of(job)).read().step
    assert read_json(folder_of(job).path / "checkpoint.json")["step"] == done


def test_a_trial_without_a_gpu_sees_none(make_job, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    seen = {}
    for gpus in (0.0, 0.5):
        job = replace(make_job(), program=("/bin/sh", "-c", "echo gpus=$CUDA_VISIBLE_DEVICES threads=$OMP_NUM_THREADS"),
                      gpus=gpus, threads=5)  # fmt: skip
        assert TrialProcess().run(job).finished
        seen[gpus] = SweepFolder(job.folder).log(job.name).read_text().splitlines()[-1]
    assert seen == {0.0: "gpus= threads=5", 0.5: "gpus=3 threads=5"}


def test_a_folder_that_is_not_the_sweeps_is_not_written_to(make_job, tmp_path):
    job = make_job()
    for other in (replace(job, folder=tmp_path / "elsewhere"), replace(job, token="of another sweep")):
        with pytest.raises(UserError, match=r"does not see .*: it must be on a shared file system"):
            TrialProcess().run(other)
    assert {path.name for path in job.folder.iterdir()} == {"sweep.json"}


def test_progress_takes_what_is_new_and_only_whole_lines(make_job):
    folder = folder_of(make_job())
    folder.path.mkdir(parents=True)
    progress = RunProgress(folder)
    assert progress.read() == Reading()
    folder.metrics.write_text('{"step": 4, "episode/return": 2.0, "episode/success": 0.0}\n{"step": 8, "episode/re')
    assert progress.read() == Reading(4, None, 2.0, 0.0)
    with open(folder.metrics, "a") as file:
        file.write('turn": 4.0, "episode/success": 1.0}\n')
    reading = progress.read()
    assert (reading.step, reading.episode_return, reading.success) == (8, 3.0, 0.5)
    assert reading.rate > 0
    copy = folder.path / "copy"
    copy.write_text('{"step": 6, "episode/return": 1.0, "episode/success": 0.0}\n')
    os.replace(copy, folder.metrics)  # as a run that goes on from an earlier checkpoint does
    progress.restart()
    assert progress.read() == Reading(6, None, 1.0, 0.0)
    folder.summary.write_text(
        '{"env_steps": 9, "steps_per_second": 3, "evaluation": {"return_mean": 7.5, "success": 0.9}}'
    )
    assert progress.read() == Reading(9, 3, 7.5, 0.9)
