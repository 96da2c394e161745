"""One step of the recurrent state-space model on rows of observed sequences, in five launches.

stoch_embed → hidden → gates → project → sample, named after what each computes. Every norm is applied by whoever reads
the normed rows, so that no launch exists for a norm alone. With programmatic dependent launch (compute capability 9.0
and later) a kernel fetches its weights while the one before it still runs.

The plain form of all five is `rssm_step.observe_step_reference`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genreward_fast.kernels.rssm_step import StepValues, StepWeights
from genreward_fast.kernels.rssm_tiles import (
    COLUMNS,
    NORM_EPS,
    ROWS,
    chunk,
    exact,
    groups,
    launch_options,
)
from genreward_fast.kernels.triton_support import HAS_TRITON, padded

if HAS_TRITON:
    from genreward_fast.kernels.rssm_observe_kernels import _gates, _hidden, _linear, _project, _sample


def stoch_embed(weights: StepWeights, stoch: Tensor, reset: Tensor, out: Tensor) -> None:
    """The layer on the one-hot state, before its norm, into `out`: (N, F) to (N, H); a reset row gives the bias.

    Args:
        stoch: (N, F); rows may be strided, as in all that follows.
        reset: (N,) bool.
    """
    size, flat = weights.stoch_in.shape
    k = chunk(flat, COLUMNS, stoch.dtype)
    _linear[(size // COLUMNS, -(-len(stoch) // ROWS))](
        stoch, stoch.stride(0), weights.stoch_in, weights.stoch_in.stride(0), weights.stoch_bias, reset,
        reset.stride(0), out, out.stride(0), len(stoch),
        K=flat, CHUNK=k, GROUPS=groups(k), ROWS=ROWS, COLUMNS=COLUMNS, EXACT=exact(stoch), num_warps=groups(k),
        **launch_options(stoch.device),
    )  # fmt: skip


def hidden(weights: StepWeights, deter: Tensor, reset: Tensor, action: Tensor, values: StepValues, t: int) -> None:
    """The GRU's hidden layer before its norm, and its squares.

    Args:
        deter: (N, D) before the step.
        action: (N, D), the action's share, bias included.
        values: has `embedded`; gets `hidden` and `squares`.
    """
    embedded, out, squares = values.embedded[:, t], values.hidden[:, t], values.squares[:, t]
    size, blocks = weights.deter_in.shape[0], weights.blocks
    piece = deter.shape[1] // blocks
    k = chunk(math.gcd(size, piece), COLUMNS, deter.dtype)
    _hidden[(piece // COLUMNS, -(-len(deter) // ROWS), blocks)](
        embedded, embedded.stride(0), weights.deter_scale, weights.stoch_scale, deter, deter.stride(0), reset,
        reset.stride(0), weights.hidden, weights.hidden.stride(0), action, action.stride(0), out, out.stride(0),
        squares, squares.stride(0), len(deter), NORM_EPS,
        H=size, PIECE=piece, CHUNK=k, GROUPS=groups(k), ROWS=ROWS, COLUMNS=COLUMNS, EXACT=exact(deter),
        num_warps=groups(k), **launch_options(deter.device),
    )  # fmt: skip


def gates(weights: StepWeights, deter: Tensor, reset: Tensor, values: StepValues, t: int) -> None:
    """The gates and the next deter, from `hidden`."""
    before, squares = values.hidden[:, t], values.squares[:, t]
    out, state = values.gates[:, t], values.deter[:, t]
    piece = deter.shape[1] // weights.blocks
    k = chunk(piece, COLUMNS, deter.dtype)
    tiles = deter.shape[1] // COLUMNS
    _gates[(piece // COLUMNS, -(-len(deter) // ROWS), weights.blocks)](
        before, before.stride(0), squares, squares.stride(0), weights.hidden_scale, weights.gates,
        weights.gates_bias, deter, deter.stride(0), reset, reset.stride(0), out, out.stride(0), state,
        state.stride(0), len(deter), NORM_EPS,
        D=deter.shape[1], PIECE=piece, TILES=tiles, TILES_PADDED=padded(tiles), CHUNK=k, GROUPS=groups(k, 2), ROWS=ROWS,
        COLUMNS=COLUMNS, EXACT=exact(deter), num_warps=groups(k, 2), **launch_options(deter.device),
    )  # fmt: skip


def project(
    weights: StepWeights, deter: Tensor, evidence: Tensor | None, reset: Tensor | None, values: StepValues, t: int
) -> None:
    """What the posterior of step t and the embedding of step t + 1 take of the deter between them.

    Args:
        deter: (N, D).
        evidence: (N, H), the image's share of the posterior's layer, bias included; None to leave the posterior out.
        reset: (N,) bool of step t + 1; None to leave its embedding out.
        values: gets `evidence` of t and the first half of `embedded` of t + 1.
    """
    size, length = weights.deter_in.shape
    k = chunk(length, COLUMNS, deter.dtype)
    after = values.evidence[:, max(t, 0)]
    embedded = values.embedded[:, t + 1] if reset is not None else after
    given = after if evidence is None else evidence
    resets = torch.empty(1, dtype=torch.bool, device=deter.device) if reset is None else reset
    parts = (evidence is not None) + (reset is not None)
    _project[(parts * (size // COLUMNS), -(-len(deter) // ROWS))](
        deter, deter.stride(0), weights.from_deter, weights.from_deter.stride(0), given, given.stride(0), after,
        after.stride(0), weights.deter_in, weights.deter_in.stride(0), weights.deter_bias, resets, resets.stride(0),
        embedded, embedded.stride(0), len(deter),
        K=length, H=size, POSTERIOR=evidence is not None, CHUNK=k, GROUPS=groups(k), ROWS=ROWS, COLUMNS=COLUMNS,
        EXACT=exact(deter), num_warps=groups(k), **launch_options(deter.device),
    )  # fmt: skip


def sample(weights: StepWeights, unimix: float, uniform: Tensor | None, values: StepValues, t: int) -> None:
    """The posterior's logits from `evidence`, and a draw.

    Args:
        unimix: the uniform distribution's share.
        uniform: (N, S) float32 in [0, 1), one for each draw; None takes the classes in `values.index` instead.
        values: gets `logits`, `stoch` and `index`.
    """
    before, logits, stoch, index = values.evidence[:, t], values.logits[:, t], values.stoch[:, t], values.index[:, t]
    latents, (flat, size) = index.shape[1], weights.logit.shape
    classes = flat // latents
    width = padded(classes)
    per_program = max(1, COLUMNS // width)
    columns = per_program * width
    k = chunk(size, columns, logits.dtype)
    draws = logits if uniform is None else uniform
    _sample[(-(-latents // per_program), -(-len(before) // ROWS))](
        before, before.stride(0), weights.posterior_scale, weights.logit, weights.logit.stride(0),
        weights.logit_bias, draws, draws.stride(0), logits, logits.stride(0), stoch, stoch.stride(0), index,
        index.stride(0), len(before), NORM_EPS, unimix,
        H=size, LATENTS=latents, CLASSES=classes, PADDED=width, PER=per_program, FORCED=uniform is None, CHUNK=k,
        GROUPS=groups(k), ROWS=ROWS, EXACT=exact(logits), num_warps=groups(k), **launch_options(logits.device),
    )  # fmt: skip
