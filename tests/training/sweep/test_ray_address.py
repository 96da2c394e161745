"""A sweep on a Ray that is already running, as on a cluster; stopped by Ctrl-C and gone on with."""

import signal
import subprocess
import sys
import time

import pytest

from genreward_fast.files import read_json
from genreward_fast.training.sweep.folder import SweepFolder
from genreward_fast.training.sweep.progress import RunProgress

pytestmark = pytest.mark.slow

CODE = """
import sys
from pathlib import Path
from genreward_fast.commands.train import train_settings
from genreward_fast.errors import Interrupted
from genreward_fast.training.sweep.places import Places
from genreward_fast.training.sweep.start import run_sweep
address, out, resume, *program = sys.argv[1:]
given = {"tasks": ("reach",), "seeds": (0, 1), "rewards": ("none",), "flags": ("--steps", "30")}
try:
    result = run_sweep(given, Path(out), settings=train_settings, places=Places(ray=address, cpus_per_trial=1),
                       resume=resume == "True", program=program, patience=0.1, tick=0.1)
except Interrupted as stop:
    print(stop, file=sys.stderr)
    sys.exit(stop.exit_code)
print("\\n".join(result.lines()))
"""


def start(cluster, out, resume, program):
    command = [sys.executable, "-c", CODE, cluster.address, str(out), str(resume), *program]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_stopped_and_gone_on_with(cluster, fake_program, tmp_path, expected_sum):
    out = tmp_path / "sweep"
    run = SweepFolder(out).run("reach-dense-none-seed0")
    process = start(cluster, out, False, fake_program({"0": {"pause": 0.1}, "1": {"pause": 0.1}}))
    deadline = time.monotonic() + 120
    while RunProgress(run).read().step < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert error.splitlines()[-1].endswith(f"continue with: genreward sweep --resume --out {out}")
    assert not run.summary.exists()

    process = start(cluster, out, True, fake_program())
    output, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "2 of 2 trials are finished" in output
    for seed in (0, 1):
        summary = read_json(SweepFolder(out).run(f"reach-dense-none-seed{seed}").summary)
        assert summary["sum"] == expected_sum(seed)
