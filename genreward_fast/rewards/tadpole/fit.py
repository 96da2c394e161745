"""Fits the small text-to-image model to demonstrations: first its autoencoder, then its denoiser and text encoder."""

from __future__ import annotations

import hashlib
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genreward_fast.errors import Interrupted, TrainingDiverged, UserError
from genreward_fast.files import atomic_path, write_json
from genreward_fast.goals.demos import read_demos
from genreward_fast.goals.finetune.stopping import StopSignal
from genreward_fast.goals.progress import progress
from genreward_fast.rewards.fitting import FitConfig, FitResult
from genreward_fast.rewards.tadpole.examples import Pictures, read_pictures
from genreward_fast.rewards.tadpole.small_model import SIZE, SmallModel

STAGES = ("autoencoder", "denoiser")
DROPOUT = 0.1
"""Share of empty captions, from which the model learns pictures without a text (arXiv 2207.12598)."""
CHECKPOINT_STEPS = 500
_FORMAT = "genreward tadpole fit 1"
_CHECKPOINT, _RECORD, _MODEL = "checkpoint.pt", "fit.json", "model"
_SCALING_FRAMES = 256


def fit_tadpole(config: FitConfig) -> FitResult:
    """`config.steps` updates of the autoencoder, then as many of denoiser and text encoder; less if time is over.

    A step's draws depend on the seed and the step alone, so a run that was interrupted and resumed ends with the same
    weights on the same device.

    Returns:
        Its folder is a StableDiffusionPipeline, `model` in `config.out`.

    Raises:
        UserError: bad input.
        Interrupted: after a signal; a checkpoint was written.
        TrainingDiverged: a loss is not finite; the last checkpoint is intact.
    """
    checkpoint = config.out / _CHECKPOINT
    if config.out.exists() and not config.out.is_dir():
        raise UserError(f"{config.out}: is a file; choose another folder for --out")
    if config.resume and not checkpoint.is_file():
        raise UserError(f"{checkpoint}: no checkpoint to resume from; leave --resume out to start anew")
    if not config.resume and config.out.is_dir() and any(config.out.iterdir()):
        raise UserError(f"{config.out}: is not empty; choose another folder, or go on with --resume")
    pictures = read_pictures(read_demos(config.data), SIZE)
    run = _Fit(config, pictures)
    if config.resume:
        run.load(checkpoint)
    run.finish_stages()
    run.model.save(config.out / _MODEL)
    record = run.record()
    write_json(config.out / _RECORD, record)
    return FitResult(config.out / _MODEL, record, _lines(config, record))


class _Fit:
    """
    Attributes:
        done: updates made, over both stages; those that a stage had no time for count as made.
        losses: of each stage, the mean over its updates since the last checkpoint, each with the stage's step.
    """

    def __init__(self, config: FitConfig, pictures: Pictures) -> None:
        self.config, self.pictures = config, pictures
        captions = [caption for wordings in pictures.captions for caption in wordings]
        self.model = SmallModel(captions, config.seed).to(config.device)
        self.done = 0
        self.losses: dict[str, list[tuple[int, float]]] = {stage: [] for stage in STAGES}
        self.optimizers = {stage: torch.optim.AdamW(self._trained(stage), lr=config.lr) for stage in STAGES}

    def finish_stages(self) -> None:
        total = len(STAGES) * self.config.steps
        bar = progress(total=total, initial=self.done, unit="step", desc="tadpole")
        recent: list[Tensor] = []
        began = time.monotonic()
        with StopSignal() as stop, bar:
            while self.done < total:
                stage, step = STAGES[self.done // self.config.steps], self.done % self.config.steps
                recent.append(self._update(stage, step))
                late = time.monotonic() - began >= 60 * self.config.minutes
                made = self.config.steps - step if late else 1
                self.done += made
                bar.update(made)
                last = late or step + 1 == self.config.steps
                if last or stop.number or (step + 1) % CHECKPOINT_STEPS == 0:
                    loss = self._mean_loss(stage, step, recent)
                    bar.set_postfix({stage: f"{loss:.4f}"})
                    if last and stage == "autoencoder":
                        self._set_scaling()
                    self.save()
                if last:
                    began = time.monotonic()
                if stop.number and self.done < total:
                    message = f"stopped after step {self.done} of {total}; --resume goes on from there"
                    raise Interrupted(stop.number, message)

    def record(self) -> dict[str, Any]:
        """What `fit.json` says."""
        config = self.config
        return {
            "reward": config.reward,
            "data": str(config.data),
            "data_sha256": self.pictures.identity,
            "clips": len(self.pictures.captions),
            "pictures": len(self.pictures.frames),
            **{name: getattr(config, name) for name in ("steps", "batch_size", "lr", "seed")},
            "losses": {stage: [list(point) for point in points] for stage, points in self.losses.items()},
        }

    def save(self) -> None:
        with atomic_path(self.config.out / _CHECKPOINT) as temporary:
            torch.save(
                {
                    "format": _FORMAT,
                    "identity": self._identity(),
                    "done": self.done,
                    "losses": self.losses,
                    "scaling": self.model.vae.config.scaling_factor,
                    "model": self.model.state_dict(),
                    "optimizers": {stage: optimizer.state_dict() for stage, optimizer in self.optimizers.items()},
                },
                temporary,
            )

    def load(self, path: Path) -> None:
        """
        Raises:
            UserError: damaged, or of a fit with other data or settings.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for damaged files
            raise UserError(f"{path}: damaged ({type(error).__name__}); start anew in another folder") from None
        if not isinstance(state, dict) or state.get("format") != _FORMAT:
            raise UserError(f"{path}: not a checkpoint of this version; start anew in another folder")
        for name, value in self._identity().items():
            if state["identity"][name] != value:
                raise UserError(
                    f"{path}: was begun with {name} {state['identity'][name]}, not {value}; go on with that"
                )
        self.model.load_state_dict(state["model"])
        self.model.vae.register_to_config(scaling_factor=state["scaling"])
        for stage, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][stage])
        self.done, self.losses = state["done"], state["losses"]

    def _update(self, stage: str, step: int) -> Tensor:
        generator = self._generator(f"{stage} {step}")
        frames, texts = self.pictures.draw(self.config.batch_size, DROPOUT, generator)
        if stage == "autoencoder":
            loss = self.model.autoencoder_loss(frames, generator)
        else:
            loss = self.model.denoising_loss(frames, texts, generator)
        optimizer = self.optimizers[stage]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained(stage), 1.0)
        optimizer.step()
        return loss.detach()

    def _set_scaling(self) -> None:
        self.model.set_scaling(self.pictures.draw(_SCALING_FRAMES, 0, self._generator("scaling"))[0])

    def _mean_loss(self, stage: str, step: int, recent: list[Tensor]) -> float:
        mean = torch.stack(recent).mean().item()
        recent.clear()
        if not math.isfinite(mean):
            raise TrainingDiverged(f"the {stage}'s loss is {mean} at step {step + 1}; lower --lr")
        self.losses[stage].append((step + 1, mean))
        return mean

    def _trained(self, stage: str) -> list[torch.nn.Parameter]:
        modules = [self.model.vae] if stage == "autoencoder" else [self.model.unet, self.model.text_encoder]
        return [parameter for module in modules for parameter in module.parameters()]

    def _generator(self, name: str) -> torch.Generator:
        digest = hashlib.sha256(f"{self.config.seed} {name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def _identity(self) -> dict[str, Any]:
        settings = {name: getattr(self.config, name) for name in ("steps", "batch_size", "lr", "seed")}
        return settings | {"data": self.pictures.identity}


def _lines(config: FitConfig, record: dict[str, Any]) -> list[str]:
    ends = ", ".join(f"{stage} {points[-1][1]:.4f}" for stage, points in record["losses"].items())
    return [
        f"fitted to {record['pictures']} pictures of {record['clips']} clips; last losses: {ends}",
        f"use it with --reward tadpole --reward-weights {config.out / _MODEL}",
    ]
