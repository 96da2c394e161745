"""Fitting one network: updates, progress, checkpoints, an end in order.

Everything that is drawn for an update follows from the seed, the stage's name and the update's number, so a run that
was interrupted gives the same weights, bit for bit, as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genreward_fast.errors import Interrupted, TrainingDiverged, UserError, first_line
from genreward_fast.files import atomic_path
from genreward_fast.goals.finetune.batches import generator_of
from genreward_fast.goals.finetune.stopping import StopSignal
from genreward_fast.goals.progress import progress
from genreward_fast.rewards.fitting import FitConfig

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_SECONDS = 300.0
WARMUP = 100
"""Updates over which the learning rate rises from 0; a tenth of them all if that is less."""
POINTS = 100
"""Of the curve of losses that is kept."""
MAX_NORM = 1.0


@dataclass(frozen=True)
class Stage:
    """What is to be done with one network.

    Attributes:
        name: in checkpoints, and in the progress bar.
        module: all of its state; what needs no gradient is not trained.
        loss: of a batch that it draws itself, from the global generators; given the number of the update.
    """

    name: str
    module: nn.Module
    loss: Callable[[int], Tensor]


def run_stage(
    stage: Stage, config: FitConfig, identity: dict[str, Any], resumed: dict[str, Any] | None
) -> list[list[float]]:
    """Trains `stage.module` with AdamW for `config.steps` updates, or until its time is over.

    Args:
        identity: what a resumed run must have in common with this one; kept in the checkpoints.
        resumed: a checkpoint of this stage to go on from.

    Returns:
        [update, mean loss since the last entry], at most 100 of them.

    Raises:
        Interrupted: a signal came; a checkpoint was written.
        TrainingDiverged: the loss is not finite; the last checkpoint is as it was.
    """
    parameters = [parameter for parameter in stage.module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.01)
    step, losses, total = 0, [], torch.zeros((), device=config.device)
    if resumed is not None:
        step, losses, total = resumed["step"], resumed["losses"], resumed["total"].to(config.device)
        stage.module.load_state_dict(resumed["module"])
        optimizer.load_state_dict(resumed["optimizer"])

    def require_finite() -> None:
        if not total.isfinite():
            raise TrainingDiverged(
                f"{config.out}: the loss of the {stage.name} is not finite, at update {step}; "
                "fit with a lower --lr, to another folder"
            )

    def save() -> None:
        require_finite()
        state = {"module": stage.module.state_dict(), "optimizer": optimizer.state_dict(), "total": total}
        save_checkpoint(config.out, identity | {"stage": stage.name, "step": step, "losses": losses} | state)

    every = -(-config.steps // POINTS)
    warmup = min(WARMUP, -(-config.steps // 10))
    saved = time.monotonic()
    deadline = saved + 60 * config.minutes
    devices = [config.device] if config.device.type == "cuda" else []
    bar = progress(total=config.steps, initial=step, unit="update", desc=stage.name)
    stage.module.train()
    with bar, StopSignal() as stop, torch.random.fork_rng(devices=devices):
        while step < config.steps:
            torch.manual_seed(generator_of(config.seed, stage.name, step).initial_seed())
            loss = stage.loss(step)
            optimizer.param_groups[0]["lr"] = config.lr * min(1.0, (step + 1) / warmup)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, MAX_NORM)
            optimizer.step()
            step += 1
            total += loss.detach()
            bar.update()
            last = step == config.steps or time.monotonic() >= deadline
            if step % every == 0 or last:
                require_finite()
                mean = total.item() / ((step - 1) % every + 1)
                losses.append([step, mean])
                total.zero_()
                bar.set_postfix(loss=f"{mean:.4f}")
            if stop.number:
                save()
                done = f"stopped after update {step} of {config.steps} of the {stage.name}"
                raise Interrupted(stop.number, f"{done}; the same command with --resume goes on")
            if time.monotonic() - saved >= CHECKPOINT_SECONDS:
                save()
                saved = time.monotonic()
            if last:
                break
    save()  # what follows may be interrupted, too
    stage.module.eval()
    return losses


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Writes `folder/checkpoint.pt`, whole or not at all."""
    with atomic_path(folder / CHECKPOINT) as temporary:
        torch.save(state, temporary)


def load_checkpoint(folder: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Reads it without unpickling objects.

    Raises:
        UserError: there is none, it is damaged, or it was written with other settings.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        raise UserError(f"{path}: no checkpoint to go on from; leave --resume out to begin")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = {name: state[name] for name in identity}
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, KeyError ... for damaged files
        raise UserError(f"{path}: damaged, cannot be read ({first_line(error)[:120]}); begin anew") from None
    for name, value in identity.items():
        if found[name] != value:
            raise UserError(f"{path}: was begun with {name} {found[name]}, not {value}; go on with what it was begun")
    return state
