"""What `genreward bench` does, from its options on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from genreward_fast.agent import AgentConfig
from genreward_fast.bench import agent, cosine, encoders, env, fb, fb_update, parallel
from genreward_fast.bench.contestant import Spec
from genreward_fast.bench.encoder_work import Request
from genreward_fast.config import Overrides, resolve
from genreward_fast.errors import UserError
from genreward_fast.training.device import resolve_device

KERNELS = {"fb": fb, "fb-update": fb_update, "cosine": cosine}
EVERY = (*KERNELS, *encoders.ENCODERS, "env", "reward", "agent", "train")


def run_benchmarks(
    what: tuple[str, ...],
    device: str,
    seconds: float | None,
    json: Path | None,
    *,
    preset: str | None,
    weights: str | None,
    vae: str | None,
    dino: str | None,
    envs: tuple[int, ...],
    train_ratio: float,
    skip_environments: bool,
    batch: tuple[int, ...],
    frames: tuple[int, ...],
    pixels: tuple[int, ...],
    engines: tuple[str, ...],
    skip_compiled: bool,
    steps: int | None,
    trace: Path | None,
    baselines: tuple[str, ...],
    **options: Any,
) -> None:
    """Runs one benchmark, or several one after the other.

    Args:
        preset: None is `paper` on CUDA and `tiny` elsewhere.
        options: of the agent's.

    Raises:
        UserError: a number out of its range, an unknown size or engine backend, or a device that is not there.
    """
    chosen = str(resolve_device(device))
    if seconds is not None and not 0 < seconds < math.inf:
        raise UserError(f"--seconds must be a positive number, not {seconds}")
    for name, least in (("envs", min(envs, default=1)), ("train-ratio", train_ratio)):
        if not 0 < least < math.inf:
            raise UserError(f"--{name} must be a positive number, not {least}")
    preset = preset or ("paper" if chosen.startswith("cuda") else "tiny")
    request = Request(
        device=chosen,
        preset=preset,
        seconds=1.0 if seconds is None else seconds,
        batch=batch,
        frames=frames,
        pixels=pixels,
        compiled=not skip_compiled,
        engines=engines,
    )
    flags = Overrides(vae=vae, dino=dino, weights=weights, device=chosen, train_ratio=train_ratio)
    common = [] if seconds is None else ["--seconds", str(seconds)]
    names = EVERY if "all" in what else tuple(dict.fromkeys(what))
    encoders.check([name for name in names if name in encoders.ENCODERS], request)
    for name in names:
        target = json / f"{name}.json" if json is not None and len(names) > 1 else json
        writing = [] if target is None else ["--json", str(target)]
        if name == "agent":
            options |= {"envs": max(envs, default=16), "train_ratio": train_ratio}
            run_agent(chosen, seconds, target, skip_environments=skip_environments, **options)
        elif name in encoders.ENCODERS:
            encoders.run(name, request, target)
        elif name == "reward":
            from genreward_fast.bench import reward  # the models' libraries take seconds to import

            config = resolve(preset, flags).encoders
            numbers = envs or reward.ENVS
            measured = reward.Request(config, chosen, numbers, seconds or 2.0, not skip_environments, baselines)
            reward.run(measured, target)
        elif name == "train":
            from genreward_fast.bench import train

            train.run(train.Request(resolve(preset, flags), envs or train.ENVS, steps, trace), target)
        elif name == "env":
            env.main([*common, *writing])
        else:
            KERNELS[name].main(["--device", chosen, *common, *writing])


def run_agent(
    device: str,
    seconds: float | None,
    target: Path | None,
    *,
    sizes: tuple[str, ...],
    skip_plain: bool,
    skip_cold_start: bool,
    skip_environments: bool,
    r2dreamer: Path | None,
    dreamerv3_torch: Path | None,
    torchrl: str | None,
    compile_minutes: float,
    **shape: Any,
) -> None:
    """The agent's benchmark; under torchrun its data-parallel form."""
    for size in sizes:
        AgentConfig(size=size, **{k: shape[k] for k in ("dtype", "batch_size", "batch_length", "imagination")})
    spec = Spec(device=device, seconds=2.0 if seconds is None else seconds, **shape)
    if parallel.is_parallel():
        parallel.run_parallel(spec, sizes, target)
        return
    request = agent.Request(
        spec=spec,
        sizes=sizes,
        plain=not skip_plain,
        cold_start=not skip_cold_start,
        environments=not skip_environments,
        r2dreamer=r2dreamer,
        dreamerv3_torch=dreamerv3_torch,
        torchrl=torchrl,
        compile_minutes=compile_minutes,
    )
    agent.run(request, target)
