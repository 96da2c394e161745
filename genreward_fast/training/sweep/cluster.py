"""Ray: the machines of a sweep, and the trials that run on them. Nothing else of this project imports Ray."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genreward_fast.errors import RunFailed, UserError, first_line
from genreward_fast.training.sweep.machines import LOST, Attempt, Machines, Resources
from genreward_fast.training.sweep.trial import Job, Outcome, TrialProcess, sees

_STORE_BYTES = 100 * 2**20  # nothing but outcomes goes through Ray's object store
_PORT_SECONDS, _ANSWER_SECONDS = 5.0, 30.0
_NODE_SECONDS = 120.0


@dataclass
class RayAttempt(Attempt):
    """`actor`: who watches the trial; `ready`, `outcome`: references to what it answers."""

    actor: Any
    ready: Any
    outcome: Any


class Cluster(Machines[RayAttempt]):
    """A Ray of this machine's own, or one that is running. Leaving it as a context manager ends what it started.

    Args:
        address: "HOST:PORT" or "auto" for a running Ray; None starts one here, which ends with this process.
        cpus, gpus: what a Ray of this machine's own has.

    Raises:
        UserError: Ray is missing, or nothing answers at the address.
    """

    def __init__(self, address: str | None = None, *, cpus: int | None = None, gpus: int | None = None):
        self._ray = ray = require_ray()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # trials without a GPU are hidden from them
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address is None:
            ray.init("local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False,
                     object_store_memory=_STORE_BYTES, **options)  # fmt: skip
        else:
            require_answer(address)
            ray.init(address, **options)

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    @property
    def address(self) -> str:
        """HOST:PORT, for others to connect to."""
        return self._ray.get_runtime_context().gcs_address

    def machines(self) -> list[dict[str, Any]]:
        """The machines that are up: NodeID, NodeManagerHostname, Resources ({"CPU": 8.0, "GPU": 1.0, ...})."""
        return [node for node in self._ray.nodes() if node["Alive"]]

    def require_folder(self, folder: Path, token: str, resources: Resources) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        looks = self._ray.remote(num_cpus=0, max_retries=0)(sees)
        machines = [node for node in self.machines() if resources.fit(node["Resources"])]
        seen = [
            looks.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                folder, token
            )
            for node in machines
        ]
        for node, answer in zip(machines, seen):
            name = node["NodeManagerHostname"]
            try:
                if self._ray.get(answer, timeout=_NODE_SECONDS):
                    continue
            except self._ray.exceptions.RayError as error:
                raise UserError(
                    f"{name}: cannot run a trial ({_cause(error)}); every machine needs the same genreward-fast, "
                    "Python and Ray"
                ) from None
            raise UserError(f"{name} does not see {folder}: name an --out on a file system that all machines share")

    def start(self, job: Job, resources: Resources) -> RayAttempt:
        # Two threads: one waits for the process, the other hears `stop`.
        actor = self._ray.remote(TrialProcess).options(
            num_cpus=resources.cpus, num_gpus=resources.gpus, max_concurrency=2, max_restarts=0
        ).remote()  # fmt: skip
        return RayAttempt(job, actor, actor.ready.remote(), actor.run.remote(job))

    def wait(self, attempts: Iterable[RayAttempt], seconds: float) -> list[tuple[RayAttempt, Outcome]]:
        by_outcome = {attempt.outcome: attempt for attempt in attempts}
        try:
            ended, _ = self._ray.wait(list(by_outcome), timeout=seconds)
            waiting = [attempt for attempt in by_outcome.values() if not attempt.started]
            if waiting:
                ready, _ = self._ray.wait([a.ready for a in waiting], num_returns=len(waiting), timeout=0)
                for attempt in waiting:
                    attempt.started = attempt.ready in ready
        except self._ray.exceptions.RayError as error:
            raise RunFailed(f"the Ray cluster is gone ({first_line(error)}); go on with --resume") from None
        return [(by_outcome[reference], self._outcome(by_outcome[reference])) for reference in ended]

    def stop(self, attempt: RayAttempt) -> None:
        attempt.actor.stop.remote()

    def kill(self, attempt: RayAttempt) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError):  # it may be gone, with all of its cluster
            self._ray.kill(attempt.actor)

    def _outcome(self, attempt: RayAttempt) -> Outcome:
        try:
            outcome = self._ray.get(attempt.outcome)
        except self._ray.exceptions.RayError as error:
            outcome = Outcome(LOST, _cause(error))
        self.kill(attempt)
        return outcome


def require_ray() -> Any:
    """Ray. Raises UserError if it or rich is not installed."""
    try:
        import ray
        import rich  # noqa: F401
    except ImportError:
        raise UserError(
            'genreward sweep needs ray and rich: pip install "genreward-fast[cluster]"; or add --local, to use this '
            "machine without them"
        ) from None
    return ray


def require_answer(address: str) -> None:
    """Checks that a Ray answers at "HOST:PORT" or "auto", within half a minute. Ray itself tries for minutes.

    Raises:
        UserError: nothing answers, it is no Ray, or one of another version.
    """
    hint = "name the address that ray start --head printed, HOST:PORT, or auto on a machine of the cluster"
    if address != "auto":
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16 or "/" in host:
            raise UserError(f"--ray {address}: not an address; {hint}")
        try:
            socket.create_connection((host, int(port)), _PORT_SECONDS).close()
        except OSError as error:
            raise UserError(f"--ray {address}: nothing answers ({error.strerror or error}); {hint}") from None
    code = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False, logging_level='CRITICAL')"
    try:  # in a process of its own: where no Ray answers, Ray ends the whole process
        subprocess.run([sys.executable, "-c", code, address], check=True, timeout=_ANSWER_SECONDS,
                       capture_output=True, text=True)  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UserError(f"--ray {address}: no Ray answers within {_ANSWER_SECONDS:.0f} seconds; {hint}") from None
    except subprocess.CalledProcessError as error:
        last = [line.strip() for line in error.stderr.splitlines() if line.strip()][-1:] or ["it ends at once"]
        raise UserError(f"--ray {address}: cannot be used ({last[0][:300]}); {hint}") from None


def _cause(error: Exception) -> str:
    """Ray's errors are pages; the line that says what happened is the one of the exception inside, or the first."""
    return first_line(getattr(error, "cause", None) or error)[:300]
