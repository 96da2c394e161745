"""Approximations of generation by name: what is skipped between steps of denoising."""

from __future__ import annotations

from typing import Any

from genreward_fast.errors import UserError

APPROXIMATIONS = ("none", "first-block")


def approximate(transformer: Any, name: str, threshold: float) -> None:
    """Lets a transformer skip work, through diffusers' own hooks; none leaves it as it is.

    first-block: a step whose first block's residual differs from the last computed step's by at most `threshold` (mean
    absolute difference over mean absolute value) takes the other blocks' residual from there (diffusers'
    `FirstBlockCacheConfig`, after TeaCache, arXiv 2411.19108). With 0 nothing is skipped.

    Raises:
        UserError: the transformer is too small.
    """
    if name == "none":
        return
    from diffusers import FirstBlockCacheConfig

    if len(transformer.transformer_blocks) < 2:
        raise UserError(f"--approximate {name}: needs a transformer of at least 2 blocks")
    transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
