"""Approximations of generation by name: what is skipped between steps of denoising."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from genreward_fast.errors import UserError

APPROXIMATIONS = ("none", "first-block", "attention-broadcast")
BROADCAST_TIMESTEPS = 100, 850
"""Between which attention is broadcast, as VideoSys has it for CogVideoX; both are left out."""


def approximate(transformer: Any, name: str, threshold: float) -> None:
    """Lets a transformer skip work, through diffusers' own hooks; none leaves it as it is.

    first-block: a step whose first block's residual differs from the last computed step's by at most `threshold` (mean
    absolute difference over mean absolute value) takes the other blocks' residual from there (diffusers'
    `FirstBlockCacheConfig`, after TeaCache, arXiv 2411.19108). With 0 nothing is skipped.

    attention-broadcast: between the timesteps `BROADCAST_TIMESTEPS`, every second step takes each block's attention
    from the step before (Pyramid Attention Broadcast, arXiv 2408.12588; diffusers'
    `PyramidAttentionBroadcastConfig`). What it saves does not depend on the weights. It keeps the attentions of all
    blocks: 9 GB for 49 frames of 480x720 at 5B.

    Raises:
        UserError: the transformer is too small.
    """
    if name == "none":
        return
    from diffusers import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig

    if name == "attention-broadcast":
        config: Any = PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=BROADCAST_TIMESTEPS,
            current_timestep_callback=timestep_reader(transformer),
        )
    elif len(transformer.transformer_blocks) < 2:
        raise UserError(f"--approximate {name}: needs a transformer of at least 2 blocks")
    else:
        config = FirstBlockCacheConfig(threshold=threshold)
    transformer.enable_cache(config)


def timestep_reader(transformer: Any) -> Callable[[], int]:
    """What the transformer's last call was for; read from the device once a call, not once a block."""
    last = [0]

    def remember(_: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        last[0] = int(options["timestep"][0])

    transformer.register_forward_pre_hook(remember, with_kwargs=True)
    return lambda: last[0]
