"""The weights of one step of the recurrent state-space model, and what it computes, as its kernels take them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genreward_fast.kernels.rssm_tiles import COLUMNS


@dataclass(frozen=True)
class StepWeights:
    """The model's weights; D deter, H hidden, S latents of K classes, F = S · K, d = D / blocks.

    All in one floating dtype, in which the states are, but for the norms' scales, which are float32. Matrices may be
    strided as long as their last axis is contiguous.
    """

    deter_in: Tensor  # (H, D)
    deter_bias: Tensor  # (H,)
    deter_scale: Tensor  # (H,)
    stoch_in: Tensor  # (H, F)
    stoch_bias: Tensor  # (H,)
    stoch_scale: Tensor  # (H,)
    hidden: Tensor  # (blocks, d + 3 H, d): rows for the block's own d, then for embedded deter, stoch, action
    hidden_scale: Tensor  # (D,)
    gates: Tensor  # (blocks, d, 3 d)
    gates_bias: Tensor  # (3 D,)
    from_deter: Tensor  # (H, D), what the posterior's layer takes of deter
    posterior_scale: Tensor  # (H,)
    logit: Tensor  # (F, H)
    logit_bias: Tensor  # (F,)

    @property
    def blocks(self) -> int:
        return self.hidden.shape[0]


@dataclass(frozen=True)
class StepValues:
    """What a step computes and its gradient reads; of B sequences of T steps, `at(t)` being those of one step."""

    embedded: Tensor  # (B, T, 2 H): deter, then stoch, before their norms
    hidden: Tensor  # (B, T, D) before the norm
    squares: Tensor  # (B, T, tiles) float32, whose sum over tiles is hidden's sum of squares
    gates: Tensor  # (B, T, 3 D) without their bias
    deter: Tensor  # (B, T, D)
    evidence: Tensor  # (B, T, H), the posterior's layer before its norm
    logits: Tensor  # (B, T, F)
    stoch: Tensor  # (B, T, F) one-hot
    index: Tensor  # (B, T, S) int64

    @classmethod
    def empty(cls, weights: StepWeights, batch: int, steps: int, latents: int) -> StepValues:
        """Memory for B sequences of T steps."""
        size, flat, hidden = weights.deter_in.shape[1], weights.stoch_in.shape[1], weights.deter_in.shape[0]
        like = weights.logit_bias

        def make(*shape: int, dtype: torch.dtype = like.dtype) -> Tensor:
            return torch.empty(batch, steps, *shape, dtype=dtype, device=like.device)

        return cls(
            embedded=make(2 * hidden),
            hidden=make(size),
            squares=make(size // COLUMNS, dtype=torch.float32),
            gates=make(3 * size),
            deter=make(size),
            evidence=make(hidden),
            logits=make(flat),
            stoch=make(flat),
            index=make(latents, dtype=torch.int64),
        )
