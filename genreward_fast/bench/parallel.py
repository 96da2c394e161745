"""Data parallelism: `torchrun --nproc-per-node 2 benchmarks/agent/bench_agent.py`, one process a GPU."""

from __future__ import annotations

import gc
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from genreward_fast.agent import Agent
from genreward_fast.agent.parallel import Parallel
from genreward_fast.bench.contestant import ACTIONS, Spec
from genreward_fast.bench.ours import config_of, random_batch
from genreward_fast.bench.timing import device_name
from genreward_fast.files import write_json


def is_parallel() -> bool:
    """Whether torchrun started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def run_parallel(spec: Spec, sizes: tuple[str, ...], path: Path | None) -> list[dict[str, Any]]:
    """Times updates on one GPU alone, then on all with the same batch each (weak) and with a share of it (strong).

    Rank 0 prints and writes. The time of all is that of the slowest. Efficiency is the time alone over the time of
    all, and over their number for the strong scaling.
    """
    import torch.distributed as distributed

    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    cuda = spec.device.startswith("cuda")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    alone = {size: updates_ms(replace(spec, size=size), device, rank)[0] for size in sizes}
    distributed.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
    results = []
    try:
        for size in sizes:
            for scaling, share in (("weak", spec.batch_size), ("strong", max(1, spec.batch_size // ranks))):
                own = replace(spec, size=size, batch_size=share)
                ms, checksum = updates_ms(own, device, rank, Parallel())
                times = torch.tensor([ms, alone[size]], device=device, dtype=torch.float64)
                distributed.all_reduce(times, distributed.ReduceOp.MAX)
                sums = [torch.zeros_like(checksum) for _ in range(ranks)]
                distributed.all_gather(sums, checksum)
                together, single = times.tolist()
                results.append(
                    {
                        "name": f"ours, {ranks} processes, {scaling}",
                        "size": size,
                        "dtype": spec.dtype,
                        "captured": cuda and spec.capture,
                        "batch each": share,
                        "update ms": together,
                        "alone ms": single,
                        "efficiency": single / together / (ranks if scaling == "strong" else 1),
                        "same parameters": all(torch.equal(sums[0], other) for other in sums),
                    }
                )
                if rank == 0:
                    print(line(results[-1]), flush=True)
    finally:
        distributed.destroy_process_group()
    if rank == 0 and path is not None:
        record = {"device": f"{ranks} × {device_name(device)}", "torch": torch.__version__, "results": results}
        write_json(path, record | {"shape": [spec.batch_size, spec.batch_length, spec.imagination]})
    return results


def updates_ms(
    spec: Spec, device: torch.device, rank: int, parallel: Parallel | None = None
) -> tuple[float, torch.Tensor]:
    """Median milliseconds of an update, and the sum of each parameter after all of them (in float64)."""
    config = config_of(spec)
    agent = Agent(config, ACTIONS, device, parallel=parallel)
    batch = random_batch(config, device, seed=rank)
    times: list[float] = []
    for number in range(count_updates(spec, device)):
        begin = time.perf_counter()
        agent.update(batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= 3:
            times.append(1e3 * (time.perf_counter() - begin))
    checksum = torch.stack([p.detach().double().sum() for _, p in agent.model.trained()])
    del agent
    gc.collect()  # an agent and its graphs refer to each other
    return statistics.median(times), checksum


def count_updates(spec: Spec, device: torch.device) -> int:
    """The same on all ranks, since an update waits for the others': not as many as fit into a time."""
    return 3 + max(3, int(50 * spec.seconds)) if device.type == "cuda" else 6


def line(result: dict[str, Any]) -> str:
    """A result as it is printed."""
    same = "" if result["same parameters"] else "; the processes' parameters DIFFER: their gradients were not averaged"
    return (
        f"{result['name']}, {result['size']}, batch {result['batch each']} each: {result['update ms']:.2f} ms, "
        f"alone {result['alone ms']:.2f} ms, efficiency {result['efficiency']:.0%}{same}"
    )
