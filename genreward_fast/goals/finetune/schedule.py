"""The learning rate as a function of the step alone, so that nothing of it needs saving."""

from __future__ import annotations

import math

from genreward_fast.goals.finetune.config import FinetuneConfig


def learning_rate(config: FinetuneConfig, step: int) -> float:
    """Linear from 0 to `lr` over `warmup` steps, then half a cosine to 0 at `steps`."""
    if step < config.warmup:
        return config.lr * step / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))
