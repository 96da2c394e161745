"""One environment in a process of its own: `python -m genreward_fast.envs.worker CONNECTION MEMORY`.

CONNECTION and MEMORY are inherited file descriptors: one end of a pipe, and the memory that all workers and their
parent share for frames. The first message is the JSON of `Setup`; then the parent sends commands and the worker answers
each with a reply. Frames never travel through the pipe. This module imports neither torch nor multiprocessing's
machinery for starting processes, so that a worker starts fast and stays small.

A command is the struct `COMMAND` (operation, half of the memory, bit set of sizes to render, seed) followed by the
action's float32 values when it is a step. A reply is one byte that says what follows: `OK` and the struct `REPLY`
(reward, success, terminated, truncated), or an error's text.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import mmap
import os
import signal
import struct
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np

from genreward_fast.errors import UserError

COMMAND = struct.Struct("<BBIQ")
REPLY = struct.Struct("<fBBB")
RESET, STEP = 0, 1
OK, USER_ERROR, EXCEPTION = b"\x00", b"\x01", b"\x02"
HALVES = 2
_ORPHAN_CHECK = 5.0  # seconds


class WorkerEnv(Protocol):
    """What an environment has to offer to run in a worker: the part of gymnasium's interface that is used, and pictures
    on demand."""

    def reset(self, *, seed: int | None = None) -> Any: ...

    def step(self, action: np.ndarray, /) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """(observation, reward, terminated, truncated, info); `info["success"]` may be missing."""
        ...

    def render_sizes(self, sizes: tuple[int, ...], out: Mapping[int, np.ndarray]) -> Any:
        """Writes upright RGB pictures of these sizes into `out`, size -> (size, size, 3) uint8."""
        ...


@dataclass(frozen=True)
class Setup:
    """What a worker is told first.

    Attributes:
        factory: "module:function" that makes the environment.
        config: the keyword arguments for it; JSON values alone.
        sizes: every frame size that may ever be asked for; bit i of a command's bit set is `sizes[i]`.
        num_envs: rows of the frame buffers.
        index: this worker's row.
    """

    factory: str
    config: dict[str, Any]
    sizes: tuple[int, ...]
    num_envs: int
    index: int

    def dumps(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def loads(cls, text: bytes) -> Setup:
        values = json.loads(text)
        return cls(**{**values, "sizes": tuple(values["sizes"])})


def frame_bytes(sizes: tuple[int, ...], num_envs: int) -> int:
    """Bytes of shared memory for frames; at least 1, since no memory cannot be mapped."""
    return max(1, HALVES * num_envs * sum(3 * size * size for size in sizes))


def frame_arrays(memory: mmap.mmap, sizes: tuple[int, ...], num_envs: int) -> list[dict[int, np.ndarray]]:
    """The buffers in the shared memory: one dictionary for each half, size -> (num_envs, size, size, 3) uint8."""
    halves: list[dict[int, np.ndarray]] = []
    offset = 0
    for _ in range(HALVES):
        arrays = {}
        for size in sizes:
            shape = (num_envs, size, size, 3)
            arrays[size] = np.ndarray(shape, np.uint8, memory, offset)
            offset += arrays[size].nbytes
        halves.append(arrays)
    return halves


def serve(connection: Connection, memory_fd: int) -> None:
    """Answers commands until the parent closes the pipe or is gone."""
    parent = os.getppid()
    setup = Setup.loads(connection.recv_bytes())
    memory = mmap.mmap(memory_fd, frame_bytes(setup.sizes, setup.num_envs))
    halves = frame_arrays(memory, setup.sizes, setup.num_envs)
    mine = [{size: array[setup.index] for size, array in half.items()} for half in halves]
    module, _, function = setup.factory.partition(":")
    env: WorkerEnv = getattr(importlib.import_module(module), function)(**setup.config)
    while True:
        # The pipe breaks when the parent dies, unless some other child of it still holds a copy of its end.
        while not connection.poll(_ORPHAN_CHECK):
            if os.getppid() != parent:
                return
        message = connection.recv_bytes()
        operation, half, wanted, seed = COMMAND.unpack_from(message)
        info: dict[str, Any] = {}
        reward, terminated, truncated = 0.0, False, False
        if operation == RESET:
            env.reset(seed=seed)
        else:
            _, reward, terminated, truncated, info = env.step(np.frombuffer(message, np.float32, offset=COMMAND.size))
        sizes = tuple(size for bit, size in enumerate(setup.sizes) if wanted >> bit & 1)
        env.render_sizes(sizes, mine[half])
        connection.send_bytes(OK + REPLY.pack(reward, bool(info.get("success", False)), terminated, truncated))


def main() -> None:
    """Runs a worker; an exception in it is sent to the parent, and the process ends with status 1."""
    # Ctrl-C and a scheduler's SIGTERM reach every process of a job: it is the parent that shuts down, in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.enable()
    connection = Connection(int(sys.argv[1]))
    try:
        serve(connection, int(sys.argv[2]))
    except (EOFError, ConnectionError):
        return  # the parent closed the pipe, or died
    except Exception as error:
        kind, text = (USER_ERROR, str(error)) if isinstance(error, UserError) else (EXCEPTION, traceback.format_exc())
        try:
            connection.send_bytes(kind + text.encode())
        except OSError:
            return
        sys.exit(1)


if __name__ == "__main__":
    main()
