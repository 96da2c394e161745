"""The loop of a fine-tuning run: updates, log, validation, checkpoints, an end in order."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from genreward_fast.errors import Interrupted, RunFailed, TrainingDiverged, UserError
from genreward_fast.goals.finetune import state
from genreward_fast.goals.finetune.board import Board
from genreward_fast.goals.finetune.conditioning import Conditioning
from genreward_fast.goals.finetune.config import FinetuneConfig
from genreward_fast.goals.finetune.encoded import EncodedClips
from genreward_fast.goals.finetune.result import save_lora, save_record, save_transformer
from genreward_fast.goals.finetune.speed import Speedometer
from genreward_fast.goals.finetune.stopping import StopSignal
from genreward_fast.goals.finetune.updates import Updates
from genreward_fast.goals.finetune.validation import validation_examples, validation_loss, validation_video
from genreward_fast.goals.flops import training_flops, transformer_flops
from genreward_fast.goals.lora import base_fingerprint
from genreward_fast.goals.progress import progress
from genreward_fast.goals.video_model import Pipeline, explaining_out_of_memory

_LOWER = "lower --batch-size (and raise --accumulate), turn on --gradient-checkpointing, or train a LoRA instead of all"


class FineTuner:
    """A run.

    Attributes:
        step: updates made.
        loss: of the last one, the mean over processes; None before the first.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        clips: EncodedClips,
        config: FinetuneConfig,
        out: Path,
        *,
        resumed: dict[str, Any] | None = None,
        cpu: bool = False,
    ) -> None:
        """
        Args:
            pipeline: without a text encoder; its transformer is trained.
            resumed: a checkpoint (`state.load`) to go on from.
            cpu: compute on the CPU even if there is a GPU.

        Raises:
            UserError: the clips do not fit the model, or the checkpoint is of another model or of other clips.
        """
        self.pipeline, self.clips, self.config, self.out = pipeline, clips, config, out
        self.trained_on = len(clips) - config.validation_clips
        if self.trained_on < 1:
            raise UserError(
                f"--validation-clips {config.validation_clips}: leaves none of {len(clips)} clips to train on"
            )
        self.conditioning = Conditioning(pipeline.transformer.config, pipeline.vae.config)
        self.conditioning.check(clips[0].video, clips.empty_text)
        self.base = base_fingerprint(pipeline.transformer)
        self._check_resumed(resumed)
        self.accelerator = Accelerator(mixed_precision="bf16" if config.dtype == "bfloat16" else "no", cpu=cpu)
        with explaining_out_of_memory("loading the model", _LOWER):
            self.updates = Updates(
                pipeline.transformer, pipeline.scheduler, self.conditioning, config, self.accelerator
            )
        self.step = 0
        self.loss: float | None = None
        self._saved_at: int | None = None
        if resumed is not None:
            self.step = self._saved_at = resumed["step"]
            self.loss = resumed["loss"]
            state.scatter(resumed, self.updates.model, self.updates.optimizer.optimizer, self.updates.ema)
        held_out = range(self.trained_on, len(clips))
        self._examples = validation_examples(clips, held_out, config, self.updates.timesteps, self.updates.patch_t)

    def run(self) -> dict[str, Any]:
        """Trains until `config.steps`, and writes the result.

        Returns:
            what `finetune.json` records.

        Raises:
            Interrupted: after a signal; a checkpoint was written.
            TrainingDiverged: the loss is not finite; the last checkpoint is intact.
            RunFailed: out of memory.
        """
        main = self.accelerator.is_main_process
        board = Board(self.out, self.step) if main else None
        bar = progress(total=self.config.steps, initial=self.step, disable=not main, unit="step")
        speed = Speedometer(self._flops(), self.accelerator.device, self.updates.dtype)
        try:
            with StopSignal() as stop:
                while self.step < self.config.steps:
                    values = self._update(stop)
                    speed.count(self.config.batch_size * self.config.accumulate)
                    bar.update()
                    bar.set_postfix(loss=f"{self.loss:.4f}")
                    last = self.step == self.config.steps
                    if self.step % self.config.log_every == 0 or last:
                        values |= speed.read(self.accelerator.num_processes)
                        if board:
                            board.scalars(self.step, values)
                    if self.config.validate_every and (self.step % self.config.validate_every == 0 or last):
                        with self._saving_before_failure():
                            self._validate(board)
                        speed.restart()
                    if self.step % self.config.checkpoint_every == 0 and not last:
                        self.save()
                        speed.restart()
            return self.save(final=True)
        finally:
            bar.close()
            if board:
                board.close()

    def validation_loss(self) -> float:
        """The mean loss on the held-out clips with the weights that the run would give; the same draws every time."""
        with self.updates.averaged():
            return validation_loss(self._examples, self.updates.loss)

    def save(self, final: bool = False) -> dict[str, Any]:
        """Writes the checkpoint and the result; all weights' result (gigabytes) only at the end."""
        updates = self.updates
        gathered = state.gather(updates.model, updates.optimizer.optimizer, updates.ema)
        weights = gathered["ema"] or gathered["model"]
        record = {
            "base": self.base,
            "data": self.clips.identity,
            "step": self.step,
            "loss": self.loss,
            "validation_loss": None,
            "config": asdict(self.config),
        }
        if self._examples and final:
            record["validation_loss"] = self.validation_loss()
        if self.accelerator.is_main_process:
            state.save(self.out, gathered | {key: record[key] for key in ("base", "data", "step", "loss", "config")})
            if updates.lora_metadata is not None:
                save_lora(self.out, weights, updates.lora_metadata)
                save_record(self.out, record)
            elif final:
                save_transformer(self.out, weights, dict(updates.transformer.config), updates.dtype)
                save_record(self.out, record)
        self._saved_at = self.step
        self.accelerator.wait_for_everyone()
        return record

    def _update(self, stop: StopSignal) -> dict[str, float]:
        with self._saving_before_failure(), explaining_out_of_memory(f"in step {self.step + 1}", _LOWER):
            loss = self.updates.gradients(self.clips, self.step, self.trained_on)
        told = torch.stack([loss, torch.tensor(float(stop.number), device=loss.device)])
        loss_mean, stopping = self.accelerator.reduce(told, "mean").tolist()
        if stopping:
            number = stop.number or signal.SIGTERM  # it may have reached another process only
            if self.step == 0:
                raise Interrupted(number, "stopped before the first step; there is nothing to resume")
            self.updates.optimizer.zero_grad()
            self.save()
            raise Interrupted(number, f"stopped after step {self.step}; --resume goes on from there")
        if not math.isfinite(loss_mean):
            saved = self._saved_at is not None
            kept = f"the checkpoint of step {self._saved_at} is intact" if saved else "there is no checkpoint"
            raise TrainingDiverged(f"the loss of step {self.step + 1} is {loss_mean}; {kept}; lower --lr")
        with explaining_out_of_memory(f"in step {self.step + 1}", _LOWER):
            norm = self.updates.apply(self.step)
        self.step += 1
        self.loss = loss_mean
        rate = self.updates.optimizer.param_groups[0]["lr"]
        return {"train/loss": loss_mean, "train/gradient_norm": norm, "train/lr": rate}

    @contextmanager
    def _saving_before_failure(self) -> Iterator[None]:
        """For what leaves the weights as they are: they are saved before all is lost."""
        try:
            yield
        except (RunFailed, UserError):  # out of memory, or a clip that cannot be read
            self.updates.optimizer.zero_grad()
            # With several processes the others wait for this one elsewhere, and could not take part.
            if self.accelerator.num_processes == 1 and self.step != (self._saved_at or 0):
                self.save()
            raise

    def _validate(self, board: Board | None) -> None:
        if self._examples:
            with explaining_out_of_memory("in a validation", _LOWER):
                loss = self.validation_loss()
            if board:
                board.scalars(self.step, {"validation/loss": loss})
        videos = min(self.config.validation_videos, len(self.clips) - self.trained_on)
        if not videos:
            return
        self.pipeline.vae.to(self.accelerator.device)
        self.pipeline.set_progress_bar_config(disable=True)
        steps, dtype = self.config.validation_steps, self.updates.dtype
        for index in range(self.trained_on, self.trained_on + videos):
            # Every process takes part: each may hold a part of the weights.
            with (
                explaining_out_of_memory("in a validation video", "use --validation-videos 0"),
                self.updates.averaged(),
                self.accelerator.autocast(),
            ):
                video = validation_video(self.pipeline, self.clips[index], self.clips.empty_text, steps, dtype)
            if board:
                board.video(self.step, f"clip{index}", video, self.clips.fps)

    def _flops(self) -> int:
        """Of an example."""
        frames, _, height, width = self.conditioning.video_latents(self.clips[0].video[None]).shape[1:]
        linear, attention = transformer_flops(self.updates.transformer.config, frames, height, width)
        return training_flops(linear, attention, all_weights=self.config.lora_rank is None)

    def _check_resumed(self, resumed: dict[str, Any] | None) -> None:
        if resumed is None:
            return
        if resumed["data"] != self.clips.identity:
            raise UserError(f"{self.out}: the run was started with other data; resume it with the same --data")
        if resumed["base"] != self.base:
            raise UserError(f"{self.out}: the run was started with another base model; resume it with the same --model")
