"""What runs on the machine of a trial: its training, as a process of its own, and who watches it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from genreward_fast.errors import UserError
from genreward_fast.files import read_json
from genreward_fast.training.checkpoint import RunLock
from genreward_fast.training.sweep import launch
from genreward_fast.training.sweep.folder import SweepFolder

BAD_INPUT = 2
"""Exit status of a command that refused its input: trying again does not help."""

_LOCK_SECONDS = 120.0
_PYTHON = (sys.executable, "-P", "-m")  # -P: no module of the working directory hides one of Python's


@dataclass(frozen=True)
class Job:
    """A trial's process, as it must be started on whatever machine.

    Attributes:
        name: of the trial.
        arguments: of a new run; a run that is there already is continued instead.
        folder: of the sweep.
        token: the sweep's.
        cwd: working directory, where the machine has it: what relative paths among the arguments are relative to.
        gpus: of this trial, or a fraction of one.
        threads: that PyTorch may use on the CPU.
        visible_gpus: what CUDA_VISIBLE_DEVICES is to be; None: what it is where the trial is watched.
        program: what is started, without the trial's arguments; None: the `genreward train` of the machine it runs on.
    """

    name: str
    arguments: tuple[str, ...]
    folder: Path
    token: str
    cwd: str
    gpus: float = 0.0
    threads: int = 1
    visible_gpus: str | None = None
    program: tuple[str, ...] | None = None

    def command(self) -> list[str]:
        """With --resume and without its settings if the run exists: it keeps them."""
        run = SweepFolder(self.folder).run(self.name)
        flags = ["--resume"] if run.holds_a_run() else self.arguments
        program = self.program or (*_PYTHON, "genreward_fast.cli", "train")
        return [*program, *flags, "--out", str(run.path)]


@dataclass(frozen=True)
class Outcome:
    """How a trial's process ended: exit status (below 0: by that signal), and in one line why if not well."""

    status: int
    reason: str = ""

    @property
    def finished(self) -> bool:
        return self.status == 0

    @property
    def stopped(self) -> bool:
        """Whether it ended because it was asked to."""
        return self.status in (128 + signal.SIGTERM, -signal.SIGTERM)

    @property
    def hopeless(self) -> bool:
        return self.status == BAD_INPUT


class TrialProcess:
    """Runs one job and watches it. `stop` may be called from another thread while `run` is going on."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._stop = threading.Event()

    def ready(self) -> bool:
        """Answers once this object has its machine."""
        return True

    def run(self, job: Job) -> Outcome:
        """Starts the process, and returns when it has ended.

        Raises:
            UserError: this machine does not see the sweep's folder.
        """
        if not sees(job.folder, job.token):
            raise UserError(f"{os.uname().nodename} does not see {job.folder}: it must be on a shared file system")
        folder = SweepFolder(job.folder)
        _wait_for_lock(folder.run(job.name).path, self._stop)
        log = folder.log(job.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as output:
            start = output.tell()
            output.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} on {os.uname().nodename}\n".encode())
            output.flush()
            process = self._process = subprocess.Popen(
                [*_PYTHON, launch.__name__, str(os.getpid()), *job.command()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=job.cwd if os.path.isdir(job.cwd) else None,
                env=_environment(job),
                start_new_session=True,  # Ctrl-C on the terminal goes to the sweep alone
            )
            if self._stop.is_set():
                process.send_signal(signal.SIGTERM)
            status = process.wait()
        return Outcome(status, "" if status == 0 else _reason(status, log, start))

    def stop(self) -> None:
        """Asks the process to end with a checkpoint."""
        self._stop.set()
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)


def sees(folder: Path, token: str) -> bool:
    """Whether this machine sees the sweep's folder, the same one and not another of that path."""
    try:
        return read_json(SweepFolder(folder).state).get("token") == token
    except (UserError, AttributeError):
        return False


def _environment(job: Job) -> dict[str, str]:
    environment = os.environ | {"OMP_NUM_THREADS": str(job.threads), "PYTHONUNBUFFERED": "1"}
    if job.gpus == 0:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    elif job.visible_gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = job.visible_gpus
    return environment


def _wait_for_lock(run: Path, stop: threading.Event) -> None:
    """A process that lost its watcher still writes its checkpoint: waits until it has ended."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while run.is_dir() and time.monotonic() < deadline and not stop.is_set():
        try:
            with RunLock(run):
                return
        except UserError:
            stop.wait(0.5)


def _reason(status: int, log: Path, start: int) -> str:
    """The process's last words."""
    with open(log, "rb") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()[1:] if line.strip()]
    if status == -signal.SIGKILL:
        return "killed by SIGKILL (too little memory, perhaps)"
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return lines[-1].removeprefix("genreward: ")[:300] if lines else f"ended with status {status}"
