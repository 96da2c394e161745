"""The loop that the parts share: drawn by step, bounded in steps and in time, saved every minute, resumable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genreward_fast.errors import Interrupted, RunFailed, UserError
from genreward_fast.files import atomic_path
from genreward_fast.goals.finetune.stopping import StopSignal
from genreward_fast.goals.progress import progress

_FORMAT = 1
_SAVE_EVERY = 60.0  # seconds
_LOG_EVERY = 50  # steps: reading a loss waits for the GPU


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast a part learns.

    Attributes:
        steps: updates at most.
        seconds: of training at most, over all resumed runs.
        lr: the highest learning rate of AdamW.
        warmup: steps up to it; then half a cosine down to 0.
        weight_decay: of AdamW.
        clip: the largest norm of a gradient.
        seed: of everything that is drawn.
    """

    steps: int
    seconds: float = math.inf
    lr: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """What a loop did.

    Attributes:
        steps, seconds: over all resumed runs.
        losses: the last values of everything that the part logs.
    """

    steps: int
    seconds: float
    losses: dict[str, float]


def generator_for(seed: int, step: int, device: torch.device) -> torch.Generator:
    """What step `step` draws from: it depends on nothing before, so that a resumed run draws the same."""
    return torch.Generator(device).manual_seed((seed << 32) + step)


def train(
    name: str,
    model: nn.Module,
    losses: Callable[[torch.Generator, float], dict[str, Tensor]],
    config: LoopConfig,
    checkpoint: Path,
    *,
    device: torch.device,
    after: Callable[[float], None] | None = None,
    resume: bool = False,
) -> Trained:
    """Trains the parameters of `model` that require gradients.

    How far the training is, from 0 to 1, is the larger of its shares of the steps and of the seconds; the learning rate
    follows it. With steps as the bound a resumed run computes what an uninterrupted one does.

    Args:
        name: of the part.
        model: whatever must be saved, in one module.
        losses: given the step's generator and how far the training is, the losses by name; `loss` is minimised.
        checkpoint: file of the state; removed by nobody, so that a part that is complete is not trained again.
        after: called with how far the training is after each update (a moving average, for example).
        resume: go on from `checkpoint` if it is there.

    Raises:
        UserError: the checkpoint is damaged or of another configuration.
        RunFailed: the loss is not finite.
        Interrupted: by a signal; the state is saved.
    """
    if config.steps < 1:
        raise UserError(f"{name}: steps {config.steps} must be at least 1")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in parameters if parameter.ndim > 1]
    others = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.95), fused=device.type == "cuda")
    step, before = 0, 0.0
    logged: dict[str, float] = {}
    computed: dict[str, Tensor] = {}
    if resume and checkpoint.is_file():
        step, before, logged = _load(checkpoint, model, optimizer, config)
    begun = saved = time.monotonic()

    def elapsed() -> float:
        return before + time.monotonic() - begun

    def far() -> float:
        return max(step / config.steps, elapsed() / config.seconds)

    bar = progress(total=config.steps, initial=step, unit="step", desc=name)
    model.train()
    with bar, StopSignal() as stop:
        while (done := far()) < 1 and not stop.number:
            scale = min(1.0, (step + 1) / config.warmup) * 0.5 * (1 + math.cos(math.pi * done))
            for group in optimizer.param_groups:
                group["lr"] = config.lr * scale
            computed = losses(generator_for(config.seed, step, device), done)
            optimizer.zero_grad(set_to_none=True)
            computed["loss"].backward()
            nn.utils.clip_grad_norm_(parameters, config.clip)
            optimizer.step()
            if after is not None:
                after(done)
            step += 1
            bar.update()
            if step % _LOG_EVERY == 0 or step == config.steps:
                logged = _read(name, computed, step)
                left = min(config.seconds - elapsed(), elapsed() * (config.steps / step - 1))
                bar.set_postfix_str(f"loss {logged['loss']:.4f}, {left / 60:.1f} min left", refresh=False)
            if time.monotonic() - saved > _SAVE_EVERY:
                _save(checkpoint, model, optimizer, config, step, elapsed(), logged)
                saved = time.monotonic()
        if step and not logged:
            logged = _read(name, computed, step)
        _save(checkpoint, model, optimizer, config, step, elapsed(), logged)
    if stop.number:
        raise Interrupted(stop.number, f"{name}: interrupted at step {step}; the same command with --resume goes on")
    return Trained(step, elapsed(), logged)


def _read(name: str, computed: dict[str, Tensor], step: int) -> dict[str, float]:
    values = {key: float(value.detach()) for key, value in computed.items()}
    if not all(math.isfinite(value) for value in values.values()):
        raise RunFailed(f"{name}: the loss is not finite at step {step}; the last checkpoint is intact")
    return values


def _described(config: LoopConfig) -> dict[str, Any]:
    names = ("steps", "lr", "warmup", "weight_decay", "clip", "seed")  # the seconds may be raised in a resumed run
    return {name: getattr(config, name) for name in names}


def _save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: LoopConfig,
    step: int,
    seconds: float,
    logged: dict[str, float],
) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "config": _described(config)}
    with atomic_path(path) as temporary:
        torch.save({"format": _FORMAT, "step": step, "seconds": seconds, "losses": logged, **state}, temporary)


def _load(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, config: LoopConfig
) -> tuple[int, float, dict[str, float]]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        fits = state["format"] == _FORMAT and state["config"] == _described(config)
    except Exception as error:  # torch raises many kinds for damaged files
        raise UserError(f"{path}: damaged ({type(error).__name__}); leave --resume out to start anew") from None
    if not fits:
        raise UserError(f"{path}: of another version or configuration; leave --resume out to start anew")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["seconds"], state["losses"]
