"""One agent in a process of its own: built, timed, and its numbers written to a file.

A process each, so that a cold start is really cold, memory belongs to one agent, and one that fails takes nobody along.
"""

from __future__ import annotations

import gc
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from genreward_fast.errors import UserError

ACTIONS = 4
"""Floats in an action: Meta-World's."""

ADAPTERS = {
    "ours": "genreward_fast.bench.ours",
    "r2dreamer": "genreward_fast.bench.peer_r2dreamer",
    "dreamerv3-torch": "genreward_fast.bench.peer_dreamerv3_torch",
    "torchrl": "genreward_fast.bench.peer_torchrl",
}
"""Modules with `build(spec) -> Contestant`."""


@dataclass(frozen=True)
class Spec:
    """What is timed, and on what.

    Attributes:
        adapter: a name in `ADAPTERS`.
        size: a name in `agent.SIZES`; a peer takes its own configuration of that name, or says that it has none.
        dtype: of the computation, for those that let it be chosen.
        batch_size, batch_length, imagination: of an update.
        device: "cpu", "cuda" or "cuda:N".
        seconds: how long to measure each number.
        acting: numbers of environments to act for.
        train_ratio, envs: of the throughput.
        capture: CUDA graphs (ours).
        compile: torch.compile (peers that have it).
        checkout: a peer's folder.
        environments: throughput with the real environment, too (ours).
        start_only: stop after the third update.
    """

    adapter: str = "ours"
    size: str = "12M"
    dtype: str = "bfloat16"
    batch_size: int = 16
    batch_length: int = 64
    imagination: int = 15
    device: str = "cuda"
    seconds: float = 2.0
    acting: tuple[int, ...] = (1, 4, 16)
    train_ratio: float = 512.0
    envs: int = 16
    capture: bool = True
    compile: bool = False
    checkout: str | None = None
    environments: bool = False
    start_only: bool = False


@dataclass
class Contestant:
    """An agent ready to be timed.

    Attributes:
        update: one update as its training makes it; work may still be queued on the device when it returns.
        actor: of N environments, a call that acts once for them; None if it cannot be timed.
        dtype: what it computes in.
        parameters: how many it trains.
        notes: what must be known about its numbers.
        throughput: environment steps per second with real environments, if it can be measured.
    """

    update: Callable[[], Any]
    actor: Callable[[int], Callable[[], Any]] | None
    dtype: str
    parameters: int
    notes: list[str] = field(default_factory=list)
    throughput: Callable[[], float] | None = None


class Unavailable(Exception):
    """A contestant cannot run here; the message says why, in one line."""


def measure(spec: Spec, started: float, progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """All numbers of one contestant.

    Args:
        started: `time.time()` when the process was started.
        progress: is given the numbers so far, whenever there are more.
    """
    import torch

    device = torch.device(spec.device)
    cuda = device.type == "cuda"

    def wait() -> None:
        if cuda:
            torch.cuda.synchronize(device)

    def median_ms(function: Callable[[], Any], seconds: float) -> float:
        """Milliseconds of a call until its results are there: the time on the host counts."""
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < 3 or time.perf_counter() < end:
            begin = time.perf_counter()
            function()
            wait()
            times.append(1e3 * (time.perf_counter() - begin))
        return statistics.median(times)

    contestant = importlib.import_module(ADAPTERS[spec.adapter]).build(spec)
    result: dict[str, Any] = {"dtype": contestant.dtype, "parameters": contestant.parameters, "notes": contestant.notes}
    for name in ("s to the first update", "s to the second", "s to the third"):
        contestant.update()
        wait()
        result[name] = time.time() - started
        progress(result)
    if spec.start_only:
        return result
    result["update ms"] = median_ms(contestant.update, spec.seconds)
    if cuda:
        result["peak GB"] = torch.cuda.max_memory_reserved(device) / 1e9
    progress(result)
    if contestant.actor is not None and spec.acting:
        for count in spec.acting:
            act = contestant.actor(count)
            for _ in range(3):
                act()
            result[f"act {count} ms"] = median_ms(act, min(spec.seconds, 0.5))
        result["steps/s"] = steps_per_second(contestant, spec, wait)
    progress(result)
    if spec.environments and contestant.throughput is not None:
        del contestant.update, contestant.actor
        gc.collect()  # an agent and its graphs refer to each other
        result["steps/s with environments"] = contestant.throughput()
    return result


def steps_per_second(contestant: Contestant, spec: Spec, wait: Callable[[], None]) -> float:
    """Environment steps per second if environments took no time: ticks of acting, and the updates that they earn."""
    assert contestant.actor is not None
    act, rows = contestant.actor(spec.envs), spec.batch_size * spec.batch_length
    owed, steps = 0.0, 0
    act()
    wait()
    begin = time.perf_counter()
    while not steps or time.perf_counter() - begin < spec.seconds:
        act()
        wait()  # the environments need the actions
        steps += spec.envs
        owed += spec.envs * spec.train_ratio / rows
        while owed >= 1:
            contestant.update()
            owed -= 1
    wait()
    return steps / (time.perf_counter() - begin)


def main() -> int:
    spec = Spec(**json.loads(sys.argv[1]))
    target, started = Path(sys.argv[2]), float(sys.argv[3])

    def progress(result: dict[str, Any]) -> None:
        part = target.with_suffix(".part")
        part.write_text(json.dumps(result))
        part.rename(target)

    try:
        progress(measure(spec, started, progress))
    except (Unavailable, UserError) as error:
        progress({"error": str(error)})
        return 1
    except Exception as error:
        import traceback

        traceback.print_exc()
        progress({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})
        return 1
    return 0


def command(spec: Spec, target: Path) -> list[str]:
    """What runs `main` on `spec` from now on."""
    code = "import sys; from genreward_fast.bench.contestant import main; sys.exit(main())"
    # Without the current folder on the path: the repository's has a folder called kernels.
    return [sys.executable, "-P", "-c", code, json.dumps(asdict(spec)), str(target), str(time.time())]
