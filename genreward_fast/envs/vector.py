"""Many environments at once, each in a process of its own, with frames in shared memory."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genreward_fast.envs.seeds import Split, episode_seed
from genreward_fast.envs.suites import AnyEnvConfig
from genreward_fast.envs.worker import COMMAND, RESET, STEP, Setup, frame_arrays, frame_bytes
from genreward_fast.envs.worker_process import WorkerDied, WorkerError, WorkerProcess
from genreward_fast.errors import UserError
from genreward_fast.types import EnvStep

__all__ = ["VectorEnv", "WorkerError"]

_MAX_DEATHS = 3  # in a row, without one good step between them


class VectorEnv:
    """N environments that step together.

    An environment whose last row was `is_last` ignores the next action: that step's row is the first of its next
    episode (`is_first`, reward 0, row 0). A worker that dies or hangs is replaced: the row is then the first of a new
    episode with a fresh seed, `discarded` says that the open episode is lost, and `restarts` counts it.

    Frames are views into memory that the workers write, in two halves that take turns: those of one `receive` stay as
    they are during the next `send` and `receive`, and are overwritten after the `send` that follows. A size is in
    `EnvStep.frames` if any environment rendered it for this row; the entries of environments that did not, hold
    pixels of an earlier row: `sizes_at(row[e])` says which of them are new. They stay readable after `close`.

    Args:
        config: the environments', all alike. A dataclass whose fields are JSON values, and with `action_size`, A.
        num_envs: N.
        seed: of all episodes, together with the split, the environment and the episode's number.
        split: "train" or "eval"; their episodes never share a seed.
        sizes: sides in pixels of all the frames that may ever be asked for.
        sizes_at: position in the episode -> the sizes to render there; called in this process.
        factory: "module:function" that makes an environment (`worker.WorkerEnv`) from the fields of `config`; None for
            `config.factory`, which is given `config.for_split(split)`.
        timeout: seconds after which a worker that does not answer counts as hung. Starting one takes a second or two.
        pin_memory: page-lock the frames, so that copies to a CUDA device can overlap with other work.

    Raises:
        UserError: a value is out of its range.
        WorkerError: from `reset` and `receive`: an environment raised an exception, or workers keep dying.
    """

    def __init__(
        self,
        config: AnyEnvConfig | Any,
        num_envs: int,
        *,
        seed: int,
        split: Split,
        sizes: Sequence[int],
        sizes_at: Callable[[int], tuple[int, ...]],
        factory: str | None = None,
        timeout: float = 120.0,
        pin_memory: bool = False,
    ) -> None:
        self._workers: list[WorkerProcess] = []
        if num_envs < 1:
            raise UserError(f"number of environments {num_envs}: must be at least 1")
        if seed < 0:
            raise UserError(f"seed {seed}: must not be negative")
        self.sizes = tuple(sorted(set(sizes)))
        if not all(0 < size <= 4096 for size in self.sizes) or len(self.sizes) > 32:
            raise UserError(f"frame sizes {self.sizes}: at most 32 of them, each from 1 to 4096 pixels")
        episode_seed(seed, split, 0, 0)  # refuses a wrong split before anything is started
        self.num_envs, self.action_size = num_envs, config.action_size
        self.restarts = 0
        self._seed, self._split, self._sizes_at, self._timeout = seed, split, sizes_at, timeout
        if factory is None:
            factory, config = config.factory, config.for_split(split)
        self._setups = [Setup(factory, asdict(config), self.sizes, num_envs, e) for e in range(num_envs)]
        self._memory_fd = _anonymous_memory(frame_bytes(self.sizes, num_envs))
        self._memory = mmap.mmap(self._memory_fd, frame_bytes(self.sizes, num_envs))
        halves = frame_arrays(self._memory, self.sizes, num_envs)
        self._halves = [{size: torch.from_numpy(array) for size, array in half.items()} for half in halves]
        self._pinned = self._pin() if pin_memory else False
        self._half = 0
        self._episodes = [0] * num_envs
        self._deaths = [0] * num_envs
        self._rows = np.zeros(num_envs, np.int64)
        self._is_last = np.zeros(num_envs, bool)
        self._resetting = np.ones(num_envs, bool)
        self._wanted: set[int] = set()
        self._started = self._pending = self._closed = False
        self._workers = [WorkerProcess(setup, self._memory_fd) for setup in self._setups]

    def reset(self) -> EnvStep:
        """Starts a new episode everywhere, and drops those that are open."""
        self._check(pending=False)
        self._begin(np.ones(self.num_envs, bool), None)
        return self.receive()

    def send(self, action: np.ndarray | Tensor) -> None:
        """Starts one step everywhere; returns at once.

        Args:
            action: (N, A) float; the rows of environments that start a new episode are ignored.

        Raises:
            ValueError: the shape is wrong, or a value is not finite.
            RuntimeError: before the first `reset`, twice without `receive`, or after `close`.
        """
        self._check(pending=False)
        if not self._started:
            raise RuntimeError("call reset() before the first step")
        if isinstance(action, Tensor):
            action = action.detach().cpu().numpy()
        values = np.ascontiguousarray(action, np.float32)
        if values.shape != (self.num_envs, self.action_size):
            raise ValueError(f"actions have shape {(self.num_envs, self.action_size)}, not {values.shape}")
        bad = np.flatnonzero(~np.isfinite(values).all(1))
        if bad.size:
            raise ValueError(f"actions must be finite; environment {bad[0]} got {values[bad[0]].tolist()}")
        self._begin(self._is_last.copy(), values)

    def receive(self) -> EnvStep:
        """Waits for the step that `send` started."""
        self._check(pending=True)
        n = self.num_envs
        reward = np.zeros(n, np.float32)
        success, terminal, last, discarded = (np.zeros(n, bool) for _ in range(4))
        waiting = list(range(n))
        try:
            while waiting:
                dead = []
                for e in waiting:
                    try:
                        reward[e], success[e], terminal[e], truncated = self._workers[e].receive(self._timeout)
                    except WorkerDied as death:
                        self._bury(e, death)
                        dead.append(e)
                        continue
                    last[e] = terminal[e] or truncated
                    if not self._resetting[e]:
                        self._deaths[e] = 0
                for e in dead:
                    discarded[e] |= not self._resetting[e]
                    self._workers[e] = WorkerProcess(self._setups[e], self._memory_fd)
                    self._resetting[e] = True
                    self._command(e, None)
                waiting = dead
        except BaseException:
            self.close()  # replies are missing or half read: nothing can be trusted from here on
            raise
        self._pending, self._started, self._is_last = False, True, last
        half = self._halves[self._half]
        self._half = 1 - self._half
        return EnvStep(
            frames={size: half[size] for size in self.sizes if size in self._wanted},
            reward=torch.from_numpy(reward),
            success=torch.from_numpy(success),
            is_first=torch.from_numpy(self._resetting.copy()),
            is_last=torch.from_numpy(last.copy()),
            is_terminal=torch.from_numpy(terminal),
            discarded=torch.from_numpy(discarded),
            row=torch.from_numpy(self._rows.copy()),
        )

    def step(self, action: np.ndarray | Tensor) -> EnvStep:
        """`send` and `receive`."""
        self.send(action)
        return self.receive()

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to go on with new episodes: JSON values."""
        return {"episodes": list(self._episodes), "restarts": self.restarts}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores `state()`; the next `reset` starts the episodes that would have come next.

        With another number of environments, those that are new start with their first episodes.
        """
        episodes = [int(count) for count in state["episodes"]]
        self._episodes = (episodes + [0] * self.num_envs)[: self.num_envs]
        self.restarts = int(state["restarts"])

    @property
    def pids(self) -> list[int]:
        """The workers' process ids."""
        return [worker.pid for worker in self._workers]

    def close(self) -> None:
        """Ends all workers. Closing twice does no harm."""
        if getattr(self, "_closed", True):
            return
        self._closed = True
        for worker in self._workers:
            worker.disconnect()
        for worker in self._workers:
            worker.kill(patience=5.0)
        if self._pinned:
            _cuda_check(torch.cuda.cudart().cudaHostUnregister(self._address()))
        os.close(self._memory_fd)

    def __enter__(self) -> VectorEnv:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _check(self, *, pending: bool) -> None:
        if self._closed:
            raise RuntimeError("the environments are closed")
        if self._pending and not pending:
            raise RuntimeError("a step is under way: call receive() first")
        if pending and not self._pending:
            raise RuntimeError("no step is under way: call send() first")

    def _begin(self, resetting: np.ndarray, action: np.ndarray | None) -> None:
        self._resetting = resetting
        self._rows += 1
        self._wanted = set()
        for e in range(self.num_envs):
            self._command(e, None if action is None else action[e])
        self._pending = True

    def _command(self, e: int, action: np.ndarray | None) -> None:
        if self._resetting[e]:
            self._rows[e] = 0
        sizes = set(self._sizes_at(int(self._rows[e])))
        unknown = sizes.difference(self.sizes)
        if unknown:
            self.close()
            raise ValueError(
                f"sizes_at({self._rows[e]}) asks for {sorted(unknown)}, which are not in sizes {self.sizes}"
            )
        self._wanted |= sizes
        bits = sum(1 << bit for bit, size in enumerate(self.sizes) if size in sizes)
        if self._resetting[e]:
            seed = episode_seed(self._seed, self._split, e, self._episodes[e])
            self._episodes[e] += 1
            self._workers[e].send(COMMAND.pack(RESET, self._half, bits, seed))
        else:
            assert action is not None
            self._workers[e].send(COMMAND.pack(STEP, self._half, bits, 0) + action.tobytes())

    def _bury(self, e: int, death: WorkerDied) -> None:
        output = self._workers[e].kill()
        self._deaths[e] += 1
        if self._deaths[e] >= _MAX_DEATHS:
            told = f"; the last one printed:\n{output}" if output else " and printed nothing"
            raise WorkerError(f"worker {e} died {self._deaths[e]} times without one good step: {death}{told}")
        self.restarts += 1

    def _address(self) -> int:
        return np.frombuffer(self._memory, np.uint8).ctypes.data

    def _pin(self) -> bool:
        _cuda_check(torch.cuda.cudart().cudaHostRegister(self._address(), len(self._memory), 0))
        return True


def _anonymous_memory(size: int) -> int:
    """A file descriptor of memory without a name: the system frees it with its last user, however that one ends."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("genreward-frames")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


def _cuda_check(status: Any) -> None:
    if int(status) != 0:
        raise RuntimeError(f"CUDA could not page-lock the frames' memory (error {int(status)})")
