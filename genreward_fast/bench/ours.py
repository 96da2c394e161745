"""This project's agent, as a contestant."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from genreward_fast.agent import Agent, AgentConfig
from genreward_fast.agent.memory import check_memory
from genreward_fast.bench.contestant import ACTIONS, Contestant, Spec
from genreward_fast.types import Batch


def config_of(spec: Spec) -> AgentConfig:
    return AgentConfig(
        size=spec.size,
        dtype="float32" if spec.dtype == "float32" else "bfloat16",
        batch_size=spec.batch_size,
        batch_length=spec.batch_length,
        imagination=spec.imagination,
        capture=spec.capture,
    )


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


def build(spec: Spec) -> Contestant:
    config, device = config_of(spec), torch.device(spec.device)
    check_memory(config, ACTIONS, device)
    agent = Agent(config, ACTIONS, device)
    batch = random_batch(config, device)

    def actor(count: int) -> Callable[[], Any]:
        image = torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8, device=device)
        first, carry = torch.zeros(count, dtype=torch.bool, device=device), agent.initial(count)
        return lambda: agent.act(image, first, carry)

    return Contestant(
        update=lambda: agent.update(batch),
        actor=actor,
        dtype=spec.dtype,
        parameters=sum(p.numel() for _, p in agent.model.trained()),
        throughput=lambda: training_speed(spec),
    )


def training_speed(spec: Spec) -> float:
    """Environment steps per second of the training loop on Meta-World, without a generated reward.

    Measured from where every graph has been recorded, for `spec.seconds` and at least three ticks.
    """
    from genreward_fast.encoders.presets import EncoderConfig
    from genreward_fast.envs.env_config import EnvConfig
    from genreward_fast.rewards.config import RewardConfig
    from genreward_fast.rewards.none import NoReward
    from genreward_fast.training.settings import RunConfig, TrainConfig
    from genreward_fast.training.trainer import Trainer

    context = config_of(spec).context
    config = RunConfig(
        preset="bench",
        env=EnvConfig(task="reach-v3"),
        agent=config_of(spec),
        reward=RewardConfig(name="none"),
        encoders=EncoderConfig(preset="tiny"),
        train=TrainConfig(
            envs=spec.envs,
            device=spec.device,
            train_ratio=spec.train_ratio,
            prefill=spec.envs * (spec.batch_length + context + 1),
            replay_capacity=max(50_000, 4 * spec.envs * (spec.batch_length + context)),
        ),
    )
    with tempfile.TemporaryDirectory() as folder, Trainer(config, Path(folder), NoReward()) as trainer:
        while trainer.counters.updates < 4:
            trainer.tick()
        begin, before, ticks = time.perf_counter(), trainer.rollout.env_steps, 0
        while ticks < 3 or time.perf_counter() - begin < spec.seconds:
            trainer.tick()
            ticks += 1
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)
        return (trainer.rollout.env_steps - before) / (time.perf_counter() - begin)
