"""Fitting inverse dynamics to demonstrations: what `genreward fit inverse-dynamics` does."""

from __future__ import annotations

import dataclasses
import math
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from genreward_fast.encoders.architectures import seeded
from genreward_fast.errors import Interrupted, TrainingDiverged, UserError
from genreward_fast.goals.demos import read_demos
from genreward_fast.goals.finetune.stopping import StopSignal
from genreward_fast.goals.progress import progress
from genreward_fast.training import checkpoint
from genreward_fast.training.device import resolve_device
from genreward_fast.training.settings import check_seed
from genreward_fast.training.unipi.inverse_dynamics import RECORD, FittedDynamics, InverseDynamics, NetworkConfig
from genreward_fast.training.unipi.transitions import Transitions, described, identity, read_transitions, split

_READ_EVERY = 25  # steps between two looks at the loss, which wait for the device
_FREE = ("data", "out", "steps", "device", "resume", "checkpoint_every")  # to be given anew when a fit is resumed


@dataclass(frozen=True)
class FitConfig:
    """
    Attributes:
        data: folder of demonstrations with actions (`genreward demos`).
        out: folder of the result and of the checkpoint.
        steps: updates in all.
        batch_size: pairs of frames in an update.
        lr: the highest learning rate of Adam, reached after `warmup` steps; from there half a cosine down to 0.
        seed: of the weights, of the clips held out and of what is drawn.
        device: where it is fitted: "auto", "cpu", "cuda" or "cuda:N".
        resume: go on from the checkpoint in `out`.
        height, width: of the frames in pixels, in the proportions of the videos that are to be followed.
        max_gap: most steps between two frames. A plan of n steps as a video of T frames has gaps of n / (T - 1).
        channels: width of the network.
        held_out: share of the clips that is not fitted on and judges.
        checkpoint_every: steps between checkpoints.

    Raises:
        UserError: a value is out of its range.
    """

    data: Path
    out: Path
    steps: int = 20_000
    batch_size: int = 64
    lr: float = 3e-4
    warmup: int = 200
    seed: int = 0
    device: str = "auto"
    resume: bool = False
    height: int = 96
    width: int = 96
    max_gap: int = 4
    channels: int = 32
    held_out: float = 0.1
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 1), ("warmup", 0), ("checkpoint_every", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least {least}")
        if not 0 < self.lr < math.inf:
            raise UserError(f"--lr {self.lr}: must be above 0")
        if not 0 < self.held_out < 1:
            raise UserError(f"--held-out {self.held_out}: must lie between 0 and 1")
        check_seed(self.seed)
        self.network(action_size=1)

    def network(self, action_size: int) -> NetworkConfig:
        return NetworkConfig(action_size, self.height, self.width, self.max_gap, self.channels)

    def kept(self) -> dict[str, Any]:
        """What a resumed fit must have been started with, as JSON; for the data stands its `identity`."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in _FREE}

    def learning_rate(self, step: int) -> float:
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@dataclass(frozen=True)
class FitResult:
    """What was fitted, where it is, and how it does on the clips held out."""

    folder: Path
    record: dict[str, Any]

    def lines(self) -> list[str]:
        """The result as it is printed."""
        rows = []
        for score in self.record["held_out"]["errors"]:
            each = ", ".join("-" if value is None else f"{value:.3f}" for value in score["r_squared_each"])
            total = "-" if score["r_squared"] is None else f"{score['r_squared']:.3f}"
            error = f"rms error {score['rms_error']:.3f}"
            rows.append(f"gap {score['gap']:<4}  R² {total} (of each action: {each}), {error}")
        how = f"{self.record['steps']} steps, last loss {self.record['loss']:.4f}"
        return [
            f"fitted    {self.record['clips']} clips, {how}",
            f"held out  {self.record['held_out']['clips']} clips",
            *rows,
            f"folder    {self.folder}",
        ]


def fit_inverse_dynamics(config: FitConfig) -> FitResult:
    """Fits to the mean squared error of the action; writes checkpoints, and at the end the result (`FittedDynamics`).

    Everything that can be wrong with the input is looked at before the first file is written.

    Raises:
        UserError: bad input, or a folder that holds something else.
        Interrupted: a signal came; a checkpoint was written.
        TrainingDiverged: the loss is not finite; the last checkpoint is intact.
    """
    _check_folder(config)
    device = resolve_device(config.device)
    saved = checkpoint.load_checkpoint(config.out) if config.resume else None
    demos = read_demos(config.data)
    about = described(demos)
    fitted_on, judged_on = split(demos, config.held_out, config.seed)
    data = identity(demos)
    if saved is not None:
        _check_resumed(config, saved, data)
    transitions = read_transitions(fitted_on, config.height, config.width)
    judging = read_transitions(judged_on, config.height, config.width)
    action_size = transitions.summed.shape[1]
    with seeded(config.seed):
        network = InverseDynamics(config.network(action_size)).to(device)
    config.out.mkdir(parents=True, exist_ok=True)
    with checkpoint.RunLock(config.out):
        loss = _Fitter(config, network, transitions, data, saved).run()
        gaps = [gap for gap in sorted({1, config.max_gap}) if len(judging.starts(gap))]
        held_out = {"clips": len(judged_on), "errors": [errors(network, judging, gap) for gap in gaps]}
        done = {"clips": len(fitted_on), "steps": config.steps, "loss": loss, "held_out": held_out}
        record = {**about, **done, "fit": config.kept() | {"data": data}}
        FittedDynamics(network, record).save(config.out)
    return FitResult(config.out, record)


def errors(network: InverseDynamics, transitions: Transitions, gap: int) -> dict[str, Any]:
    """How well all pairs of frames `gap` steps apart are answered.

    Returns:
        `gap`, `pairs`; `r_squared`, the share of the actions' variance that is explained, over all of them and
        (`r_squared_each`) for each, None where nothing varies; `rms_error`, root of the mean squared error.
    """
    first = transitions.starts(gap)
    before, after, wanted = transitions.pairs(first, torch.full_like(first, gap))
    network.eval()
    error = (network.actions(before, after, torch.full_like(first, gap)) - wanted).double().square()
    variation = (wanted.double() - wanted.double().mean(0)).square()
    return {
        "gap": gap,
        "pairs": len(first),
        "r_squared": _explained(error.sum(), variation.sum()),
        "r_squared_each": [_explained(*both) for both in zip(error.sum(0), variation.sum(0))],
        "rms_error": error.mean().sqrt().item(),
    }


class _Fitter:
    """The loop: updates, checkpoints, an end in order."""

    def __init__(
        self,
        config: FitConfig,
        network: InverseDynamics,
        transitions: Transitions,
        data: str,
        saved: dict[str, Any] | None,
    ) -> None:
        self.config, self.network, self.transitions, self.data = config, network, transitions, data
        self.optimizer = torch.optim.Adam(network.parameters(), lr=config.lr)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.step, self.loss = 0, 0.0
        if saved is not None:
            self.step, self.loss = saved["step"], saved["loss"]
            network.load_state_dict(saved["network"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.generator.set_state(saved["generator"])

    def run(self) -> float:
        """The mean loss of the last steps."""
        self.network.train()
        bar = progress(total=self.config.steps, initial=self.step, unit="step", desc="inverse dynamics")
        recent: list[torch.Tensor] = []
        with bar, StopSignal() as stop:
            while self.step < self.config.steps:
                recent.append(self._update())
                self.step += 1
                bar.update()
                last, due = self.step == self.config.steps, self.step % self.config.checkpoint_every == 0
                if last or due or stop.number or len(recent) == _READ_EVERY:
                    self.loss = torch.stack(recent).mean().item()
                    recent.clear()
                    if not math.isfinite(self.loss):
                        raise TrainingDiverged(
                            f"the loss is {self.loss} at step {self.step}; lower --lr and start anew in another --out"
                        )
                    bar.set_postfix(loss=f"{self.loss:.4f}", refresh=False)
                if last or due or stop.number:
                    self._save()
                if stop.number and not last:
                    kept = f"stopped after step {self.step}; the same command with --resume goes on from there"
                    raise Interrupted(signal.Signals(stop.number), kept)
        return self.loss

    def _update(self) -> torch.Tensor:
        device = next(self.network.parameters()).device
        first, gap = self.transitions.draw(self.config.batch_size, self.config.max_gap, self.generator)
        before, after, wanted = (each.to(device) for each in self.transitions.pairs(first, gap))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate(self.step)
        loss = functional.mse_loss(self.network(before, after, gap.to(device)), wanted)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach()

    def _save(self) -> None:
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "loss": self.loss,
            "fit": self.config.kept() | {"data": self.data},
        }
        checkpoint.save_checkpoint(self.config.out, state)


def _explained(error: torch.Tensor, variation: torch.Tensor) -> float | None:
    return None if variation < 1e-9 else 1 - (error / variation).item()  # less is rounding of what does not vary


def _check_folder(config: FitConfig) -> None:
    out = config.out
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder with --out")
    found = sorted(path.name for path in out.iterdir() if path.name != ".lock") if out.is_dir() else []
    if config.resume and checkpoint.NAME not in found:
        raise UserError(f"{out}: holds no checkpoint to go on from; leave --resume out to start anew")
    if config.resume or not found:
        return
    if RECORD in found or checkpoint.NAME in found:
        raise UserError(f"{out}: already holds inverse dynamics; go on with --resume, or name another --out")
    raise UserError(f"{out}: is not empty (it has {found[0]}); name another folder with --out")


def _check_resumed(config: FitConfig, saved: dict[str, Any], data: str) -> None:
    if "fit" not in saved:
        raise UserError(f"{config.out / checkpoint.NAME}: is not of inverse dynamics; name their folder with --out")
    if saved["fit"]["data"] != data:
        raise UserError(f"{config.out}: was begun with other demonstrations; go on with the same --data")
    for name, value in config.kept().items():
        if saved["fit"][name] != value:
            flag = "--size" if name in ("height", "width") else f"--{name.replace('_', '-')}"
            raise UserError(f"{flag}: {config.out} was begun with {name} {saved['fit'][name]}, not {value}; use that")
    if saved["step"] > config.steps:
        raise UserError(f"--steps {config.steps}: {config.out} is already at step {saved['step']}")
