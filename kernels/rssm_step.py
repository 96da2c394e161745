"""The weights of one step of the recurrent state-space model, and what it computes, as its kernels take them.

`observe_step_reference` is the plain form of the step, of which `rssm_observe` has the launches and
`rssm_observe_backward` those of its gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from genreward_fast.kernels.rssm_tiles import COLUMNS, NORM_EPS


@dataclass(frozen=True)
class StepWeights:
    """The model's weights; D deter, H hidden, S latents of K classes, F = S · K, d = D / blocks.

    All in one floating dtype, in which the states are, but for the norms' scales, which are float32. `hidden` and
    `gates` are contiguous; the rows of the other matrices may be strided.
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
    """What a step computes and its gradient reads, of B sequences of T steps."""

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


def observe_step_reference(
    weights: StepWeights,
    unimix: float,
    deter: Tensor,
    stoch: Tensor,
    reset: Tensor,
    action: Tensor,
    evidence: Tensor,
    uniform: Tensor | None,
    index: Tensor | None = None,
) -> StepValues:
    """One observed step in plain PyTorch: norms, gates and draws in float32, or in float64 if the states are.

    Its gradient is autograd's, straight through the draw.

    Args:
        unimix: the uniform distribution's share.
        deter, stoch: (N, D) and (N, F), before the step.
        reset: (N,) bool; where true, the state before the step is zero.
        action: (N, D), the action's share of the hidden layer, bias included.
        evidence: (N, H), the image's share of the posterior's layer, bias included.
        uniform: (N, S) in [0, 1), one for each draw; None takes the classes in `index`, (N, S) int64.

    Returns:
        Of the one step: (N, ...).
    """
    dtype, blocks, size = deter.dtype, weights.blocks, weights.deter_in.shape[0]
    wide = torch.promote_types(dtype, torch.float32)

    def normed(x: Tensor, scale: Tensor) -> Tensor:
        return F.silu(F.rms_norm(x.to(wide), scale.shape, scale.to(wide), NORM_EPS)).to(dtype)

    def by_block(x: Tensor, matrices: Tensor) -> Tensor:
        return torch.einsum("nbi,bio->nbo", x, matrices).flatten(1)

    deter, stoch = (x.masked_fill(reset.unsqueeze(1), 0) for x in (deter, stoch))
    from_deter = F.linear(deter, weights.deter_in, weights.deter_bias)
    embedded = torch.cat([from_deter, F.linear(stoch, weights.stoch_in, weights.stoch_bias)], 1)
    shared = [normed(embedded[:, :size], weights.deter_scale), normed(embedded[:, size:], weights.stoch_scale)]
    # All blocks see the same embedded state, and of the deter each its own part.
    inputs = [deter.unflatten(1, (blocks, -1)), torch.cat(shared, 1).unsqueeze(1).expand(-1, blocks, -1)]
    hidden = action + by_block(torch.cat(inputs, 2), weights.hidden[:, :-size])
    gates = by_block(normed(hidden, weights.hidden_scale).unflatten(1, (blocks, -1)), weights.gates)
    values = (gates.to(wide) + weights.gates_bias.to(wide)).unflatten(1, (blocks, 3, -1))
    reset_gate, candidate, update = (x.flatten(1) for x in values.unbind(2))
    candidate = torch.tanh(torch.sigmoid(reset_gate) * candidate)
    new = torch.lerp(deter.to(wide), candidate, torch.sigmoid(update - 1)).to(dtype)
    seen = evidence + F.linear(new, weights.from_deter)
    logits = F.linear(normed(seen, weights.posterior_scale), weights.logit, weights.logit_bias)
    drawing = index if uniform is None else uniform
    assert drawing is not None
    latents = logits.unflatten(1, (drawing.shape[1], -1))
    classes = latents.shape[-1]
    probs = latents.to(wide).softmax(-1) * (1 - unimix) + unimix / classes
    if uniform is not None:
        index = (probs[..., :-1].cumsum(-1) <= uniform.unsqueeze(-1)).sum(-1)
    assert index is not None
    drawn = F.one_hot(index, classes) + (probs - probs.detach())
    squares = hidden.to(wide).square().unflatten(1, (-1, COLUMNS)).sum(2)
    return StepValues(embedded, hidden, squares, gates, new, seen, logits, drawn.to(dtype).flatten(1), index)
