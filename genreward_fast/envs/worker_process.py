"""The parent's handle on one worker: starting it, talking to it, and ending it."""

from __future__ import annotations

import contextlib
import multiprocessing
import subprocess
import tempfile

from genreward_fast.envs.subprocesses import python_command, python_environment
from genreward_fast.envs.worker import EXCEPTION, OK, REPLY, USER_ERROR, Setup
from genreward_fast.errors import RunFailed, UserError

# One thread each: there is a worker for every environment, so more would only take turns on the same cores. The last
# one is Mesa's software renderer, which otherwise starts a thread for every core.
_SINGLE_THREADED = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "LP_NUM_THREADS": "0",
}
_TAIL = 4000  # characters of a dead worker's output to show


class WorkerError(RunFailed):
    """An environment raised an exception, or its workers keep dying. The message holds the worker's own traceback."""


class WorkerDied(Exception):
    """The worker is gone, or did not answer in time. The message says which."""


class WorkerProcess:
    """A worker that has been started; it need not be up yet.

    It is a fresh interpreter rather than a fork (a fork of a process that uses CUDA or has threads is unsafe), and
    starts without running the parent's main module again, as multiprocessing's "spawn" would.

    Args:
        setup: what to run.
        memory_fd: the shared memory.
    """

    def __init__(self, setup: Setup, memory_fd: int) -> None:
        self._connection, remote = multiprocessing.Pipe()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  closed in `kill`
        descriptors = (remote.fileno(), memory_fd)
        self._process = subprocess.Popen(
            python_command("genreward_fast.envs.worker", *map(str, descriptors)),
            env=python_environment(**_SINGLE_THREADED),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            pass_fds=descriptors,
            start_new_session=True,  # so that Ctrl-C in a terminal does not reach it while it is starting
        )
        remote.close()
        with contextlib.suppress(OSError):  # one that is dead already is noticed at `receive`
            self._connection.send_bytes(setup.dumps())

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: bytes) -> None:
        """Sends a command. A dead worker is noticed at `receive`."""
        with contextlib.suppress(OSError):
            self._connection.send_bytes(message)

    def receive(self, timeout: float) -> tuple[float, bool, bool, bool]:
        """Waits for a reply: (reward, success, terminated, truncated).

        Raises:
            WorkerDied: it died, or has not answered after `timeout` seconds.
            UserError, WorkerError: its environment raised that or another exception.
        """
        try:
            if not self._connection.poll(timeout):
                raise WorkerDied(f"it did not answer in {timeout:g} s")
            reply = self._connection.recv_bytes()
        except (EOFError, OSError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
            raise WorkerDied(f"it ended with status {self._process.returncode}") from None
        kind, content = reply[:1], reply[1:]
        if kind == USER_ERROR:
            raise UserError(content.decode())
        if kind == EXCEPTION:
            raise WorkerError(f"an environment raised an exception:\n{content.decode()}")
        assert kind == OK
        reward, success, terminated, truncated = REPLY.unpack(content)
        return reward, bool(success), bool(terminated), bool(truncated)

    def disconnect(self) -> None:
        """Tells the worker to end, by closing the pipe; `kill` waits for it."""
        self._connection.close()

    def kill(self, patience: float = 0.0) -> str:
        """Ends the worker, by force after `patience` seconds.

        Returns:
            The end of what it printed.
        """
        self._connection.close()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        return self._read_output()

    def _read_output(self) -> str:
        if self._output.closed:
            return ""
        with self._output as output:
            output.seek(max(0, output.seek(0, 2) - _TAIL))
            return output.read().decode(errors="replace").strip()
