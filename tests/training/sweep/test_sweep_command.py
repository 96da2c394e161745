"""The command, with the real training behind it; what it refuses before anything is started."""

import contextlib
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

import genreward_fast
from genreward_fast.cli import main
from genreward_fast.training.sweep import cluster as cluster_module
from genreward_fast.training.sweep.folder import SweepFolder

SMALL = ["--size", "tiny", "--dtype", "float32", "--device", "cpu", "--envs", "1", "--batch-size", "2"]
SMALL += ["--batch-length", "4", "--episode-length", "16", "--eval-episodes", "2", "--replay-capacity", "1000"]
SMALL += ["--prefill", "20", "--train-ratio", "1", "--checkpoint-minutes", "0.01", "--steps", "60"]


def refused(capsys, *arguments):
    assert main(["sweep", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


@contextlib.contextmanager
def killing(run):
    """Kills the training in this folder once, as soon as a checkpoint is there."""
    killed, over = [], threading.Event()

    def watch():
        while not over.wait(0.02):
            for path in Path("/proc").glob("[0-9]*/cmdline") if run.checkpoint.exists() else ():
                with contextlib.suppress(OSError):  # a process that has ended meanwhile
                    words = path.read_bytes().decode().split("\0")
                    if "genreward_fast.cli" in words and str(run.path) in words:
                        os.kill(int(path.parent.name), signal.SIGKILL)
                        killed.append(words)
                        return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize(
    ("killed_once", "where"),
    [
        (False, []),
        pytest.param(True, [], marks=pytest.mark.slow),
        pytest.param(True, ["--local", "--gpus", "0"], marks=pytest.mark.slow),
    ],
    ids=["ray", "ray-killed", "local-killed"],
)
def test_trained_and_compared(killed_once, where, tmp_path, capsys):
    out = tmp_path / "sweep"
    grid = ["--tasks", "reach", "--rewards", "none", "--seeds", "3"]
    run = SweepFolder(out).run("reach-dense-none-seed3")
    with killing(run) if killed_once else contextlib.nullcontext() as killed:
        assert main(["sweep", *grid, *where, "--cpus-per-trial", "1", "--out", str(out), "--", *SMALL]) == 0
    captured = capsys.readouterr()
    if killed_once:
        assert killed
        assert "retry 1 of 2 follows" in captured.err
        assert "reach-dense-none-seed3: resumed" in captured.err
        log = SweepFolder(out).log("reach-dense-none-seed3").read_text()
        resumed = next(line for line in log.splitlines() if line.startswith("resuming at step "))
        assert int(resumed.split()[3].rstrip(":")) > 0
    assert json.loads(run.summary.read_text())["env_steps"] == 60
    assert json.loads(run.config.read_text())["train"]["seed"] == 3
    assert "1 of 1 trials are finished" in captured.out
    compare = captured.out.splitlines()[-1]
    assert compare == f"compare: genreward report {out} --out {out / 'report'}"
    if killed_once:
        assert main(compare.split()[2:]) == 0
        assert "reach  dense" in capsys.readouterr().out
        assert (out / "report" / "report.html").exists()

    assert "already holds a sweep" in refused(capsys, *grid, "--out", str(out))
    says = refused(capsys, "--resume", "--seeds", "3,4", "--out", str(out))
    assert "--seeds 3,4: this sweep was started with 3" in says
    assert main(["sweep", "--resume", "--out", str(out)]) == 0  # nothing is left to do
    assert "1 of 1 trials are finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--tasks", "fly"], "fly"),
        (["--rewards", "none,money"], "--reward money: unknown"),
        (["--seeds", "0,0"], "names 0 twice"),
        (["--retries", "-1"], "--retries -1"),
        (["--gpus", "2", "--ray", "auto"], "leave one out"),
        (["--gpus", "-1"], "--gpus -1"),
        (["--gpus", "99"], "--gpus 99: this machine has"),
        (["--gpus-per-trial", "1.5"], "--gpus-per-trial 1.5"),
        (["--gpus-per-trial", "nan"], "--gpus-per-trial nan"),
        (["--cpus-per-trial", "0"], "--cpus-per-trial 0"),
        (["--ray", "nowhere"], "--ray nowhere: not an address"),
        (["--ray", "ray://127.0.0.1:10001"], "not an address"),
        (["--ray", "127.0.0.1:1"], "--ray 127.0.0.1:1: nothing answers"),
        (["--resume"], "holds no sweep"),
        (["--steps", "5"], "--steps"),
        (["--", "--frobnicate"], "--frobnicate"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert says in refused(capsys, "--out", "sweep", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_something_else_than_ray_answers(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_module, "_ANSWER_SECONDS", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        started = time.monotonic()
        assert f"--ray {address}: no Ray answers" in refused(capsys, "--ray", address, "--out", str(tmp_path / "sweep"))
        assert time.monotonic() - started < 30
    assert list(tmp_path.iterdir()) == []


def test_folders_with_other_things(capsys, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "thesis.tex" in refused(capsys, "--out", str(tmp_path))
    assert "is a file" in refused(capsys, "--out", str(tmp_path / "thesis.tex"))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "sweep.json").write_text('{"grid": {"tasks": 3}}')
    assert "sweep.json: not a SweepState" in refused(capsys, "--resume", "--out", str(tmp_path / "damaged"))


def test_ray_is_asked_for_and_nothing_else_imports_it(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "genreward-fast[cluster]" in refused(capsys, "--out", str(tmp_path / "sweep"))
    imported = {}
    for path in Path(genreward_fast.__file__).parent.rglob("*.py"):
        for indent, library in re.findall(r"^([ ]*)(?:import|from) (ray|rich)\b", path.read_text(), re.MULTILINE):
            assert indent, path  # when it is needed, not before
            imported.setdefault(library, set()).add(path.name)
    assert imported == {"ray": {"cluster.py"}, "rich": {"cluster.py", "table.py"}}
