"""Times the agent: updates and acting, as CUDA graphs and without, beside the arithmetic's limit."""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from genreward_fast.agent import SIZES, Agent, AgentConfig
from genreward_fast.files import write_json
from genreward_fast.types import Batch

ACTIONS = 4
# Of one update at 16 x 64 with 15 imagined steps. Other sizes are timed without it.
TFLOP = {"12M": 1.37}


def random_batch(config: AgentConfig, device: torch.device, seed: int = 0) -> Batch:
    """A batch as the replay gives it, of noise."""
    generator = torch.Generator(device).manual_seed(seed)
    rows = (config.batch_size, config.batch_length + config.context)
    sizes, never = config.sizes, torch.zeros(rows, dtype=torch.bool, device=device)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*rows, *shape, generator=generator, device=device) * 2 - 1

    return Batch(
        image=torch.randint(0, 256, (*rows, 64, 64, 3), generator=generator, dtype=torch.uint8, device=device),
        action=uniform(ACTIONS),
        reward=uniform(),
        is_first=never,
        is_last=never,
        is_terminal=never,
        deter=uniform(sizes.deter).to(config.compute_dtype),
        stoch=torch.randint(
            0, sizes.classes, (*rows, sizes.stoch), generator=generator, dtype=torch.uint8, device=device
        ),
        index=torch.arange(rows[0] * rows[1], device=device).view(rows),
    )


def median_ms(function: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Median milliseconds of a call until its results are there: the time on the host counts."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


def peak_gigabytes(device: torch.device) -> float:
    return torch.cuda.max_memory_reserved(device) / 1e9 if device.type == "cuda" else 0.0


def measure(config: AgentConfig, device: torch.device, acting: list[int], seconds: float, tflops: float) -> dict:
    """All numbers of one configuration."""
    if device.type == "cuda":
        gc.collect()  # an agent and its graphs refer to each other
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    begin = time.perf_counter()
    agent = Agent(config, ACTIONS, device)
    batch = random_batch(config, device)
    result: dict[str, Any] = {"size": config.size, "dtype": config.dtype, "captured": config.capture}

    def update() -> None:
        float(agent.update(batch)[0]["loss/total"])

    for name in ("s to the first update", "s to the second", "s to the third"):
        update()
        result[name] = time.perf_counter() - begin
    result["update ms"] = median_ms(lambda: agent.update(batch), device, seconds)
    if config.size in TFLOP and (config.batch_size, config.batch_length, config.imagination) == (16, 64, 15):
        result["% of limit"] = 100 * TFLOP[config.size] / tflops * 1e3 / result["update ms"]
    result["peak GB"] = peak_gigabytes(device)
    for count in acting:
        image = batch.image[:, 0].repeat(-(-count // config.batch_size), 1, 1, 1)[:count]  # type: ignore[index]
        first, carry = torch.zeros(count, dtype=torch.bool, device=device), agent.initial(count)
        for _ in range(3):
            agent.act(image, first, carry)
        result[f"act {count} ms"] = median_ms(
            lambda i=image, f=first, c=carry: agent.act(i, f, c),  # type: ignore[misc]
            device,
            min(seconds, 0.5),
        )
    return result


def matmul_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of a large matrix product in this run."""
    size = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    return 2 * size**3 / median_ms(lambda: a @ b, device, 0.3) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", nargs="+", default=["12M"], choices=list(SIZES))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--batch-length", type=int, default=64)
    parser.add_argument("--imagination", type=int, default=15)
    parser.add_argument("--act", type=int, nargs="*", default=[1, 4, 16], help="numbers of environments")
    parser.add_argument("--seconds", type=float, default=2.0, help="of measuring, per number")
    parser.add_argument("--skip-plain", action="store_true", help="only the CUDA graphs")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    device = torch.device(options.device)
    tflops = matmul_tflops(device, getattr(torch, options.dtype))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"agent on {name}, torch {torch.__version__}; matrix products reach {tflops:.2f} TFLOP/s in this run")
    results = []
    for size in options.size:
        config = AgentConfig(
            size=size,
            dtype=options.dtype,
            batch_size=options.batch_size,
            batch_length=options.batch_length,
            imagination=options.imagination,
        )
        modes = [True] if options.skip_plain else [True, False]
        for capture in modes if device.type == "cuda" else [False]:
            result = measure(replace(config, capture=capture), device, options.act, options.seconds, tflops)
            print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in result.items()))
            results.append(result)
    if options.json is not None:
        write_json(
            options.json,
            {"device": name, "torch": torch.__version__, "tflops": tflops, "results": results},
        )


if __name__ == "__main__":
    main()
