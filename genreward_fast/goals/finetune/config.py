"""The settings of a fine-tuning run."""

from __future__ import annotations

from dataclasses import dataclass

from genreward_fast.errors import UserError

WEIGHTINGS = ("model", "min-snr")
DTYPES = ("bfloat16", "float32")


@dataclass(frozen=True)
class FinetuneConfig:
    """
    Attributes:
        lora_rank: of the adapters; None trains every weight of the transformer.
        steps: updates in all.
        batch_size: clips that a process computes at once.
        accumulate: how often, before the weights change.
        lr: the highest learning rate, reached after `warmup` steps; from there half a cosine down to 0.
        weight_decay, beta1, beta2, max_grad_norm: of AdamW; the gradient's norm is cut at the last one.
        weighting: of the loss over timesteps. `model` is CogVideoX's own, equal weights of v; `min-snr` is
            arXiv 2303.09556 with γ = 5.
        caption_dropout, image_dropout: how often the caption is replaced by "", and the first frame by zeros
            (CogVideoX's image dropout is 0.05).
        ema_decay: of the moving average of the weights, which is what the run gives; 0 gives the weights themselves.
        dtype: what is computed in; trained weights are always kept in float32.
        gradient_checkpointing: compute each block again in the backward pass instead of keeping what it computed.
        seed: of everything that is drawn.
        log_every, checkpoint_every, validate_every: steps; 0 validates never.
        validation_clips: the last ones of the data, which are not trained on.
        validation_videos: of those, how many become videos. A video takes `validation_steps` guided steps.

    Raises:
        UserError: a value that makes no sense.
    """

    lora_rank: int | None = 128
    steps: int = 1000
    batch_size: int = 1
    accumulate: int = 1
    lr: float = 1e-4
    warmup: int = 100
    weight_decay: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    max_grad_norm: float = 1.0
    weighting: str = "model"
    caption_dropout: float = 0.1
    image_dropout: float = 0.05
    ema_decay: float = 0.999
    dtype: str = "bfloat16"
    gradient_checkpointing: bool = True
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 250
    validate_every: int = 250
    validation_clips: int = 0
    validation_videos: int = 1
    validation_steps: int = 50

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "checkpoint_every", "validation_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)}: must be at least 1")
        for name in ("warmup", "validate_every", "validation_clips", "validation_videos", "seed", "weight_decay"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} {getattr(self, name)}: must not be negative")
        for name in ("caption_dropout", "image_dropout", "ema_decay", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)}: must lie in [0, 1)")
        for name in ("lr", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} {getattr(self, name)}: must be above 0")
        if self.lora_rank is not None and self.lora_rank < 1:
            raise UserError(f"lora_rank {self.lora_rank}: must be at least 1")
        if self.weighting not in WEIGHTINGS:
            raise UserError(f"weighting {self.weighting!r}: use one of {', '.join(WEIGHTINGS)}")
        if self.dtype not in DTYPES:
            raise UserError(f"dtype {self.dtype!r}: use one of {', '.join(DTYPES)}")
