"""From the first layers of state and policy, before their norms, to the embedded state and action, in one launch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from genreward_fast.kernels.dense_rows import WARPS, dense_layers, fits
from genreward_fast.kernels.policy_action import policy_action, policy_action_reference
from genreward_fast.kernels.rmsnorm_silu import rmsnorm_silu, rmsnorm_silu_forward, rmsnorm_silu_reference
from genreward_fast.kernels.rssm_tiles import ROWS, chunk, exact
from genreward_fast.kernels.triton_support import HAS_TRITON, padded, runs_triton

EMBED_BYTES = 16 * 1024
"""Most bytes of the padded weight of the layer on actions: it shares shared memory with the other layers' chunks."""


@dataclass(frozen=True)
class TailWeights:
    """What stays the same from step to step; all but `scales` and the last of `embed` in the dtype to compute in,
    contiguous.

    Attributes:
        scales: (3 + L, U) float32, of the norms of both embeddings, the policy's first layer, and its L further ones.
        layers: weights (L, U, U) and biases (L, U) of the further layers.
        head: weight (2 A, U) and bias (2 A,) of mean and deviation.
        embed: weight (U, A), bias (U,), and scale (U,) float32, of the layer on actions.
        bounds: least and greatest deviation.
        eps: of all norms.
    """

    scales: Tensor
    layers: tuple[Tensor, Tensor]
    head: tuple[Tensor, Tensor]
    embed: tuple[Tensor, Tensor, Tensor]
    bounds: tuple[float, float]
    eps: float


def actor_tail_reference(
    weights: TailWeights, deter: Tensor, stoch: Tensor, noise: Tensor | None, action: Tensor, out: Tensor
) -> None:
    """What `actor_tail` computes, in plain PyTorch."""
    scales, eps, units, joint = weights.scales, weights.eps, weights.scales.shape[1], _joint(deter, stoch)
    out.copy_(rmsnorm_silu_reference(joint, scales[:3], eps))
    x = dense_layers(joint[:, 2 * units :], scales[2:], weights.layers, eps, rmsnorm_silu_reference)
    ends = weights.bounds, weights.embed, eps, out[:, 2 * units :]
    policy_action_reference(x, scales[-1], weights.head, noise, action, *ends)


def actor_tail_launches(
    weights: TailWeights, deter: Tensor, stoch: Tensor, noise: Tensor | None, action: Tensor, out: Tensor
) -> None:
    """`actor_tail` with a launch for each product and each norm, for any width."""
    scales, eps, units, joint = weights.scales, weights.eps, weights.scales.shape[1], _joint(deter, stoch)
    weight, bias = weights.layers
    rmsnorm_silu_forward(joint, scales[:3], eps, out)
    if len(weight):  # of which the first norm is done
        x = F.linear(out[:, 2 * units :], weight[0], bias[0])
        x = dense_layers(x, scales[3:], (weight[1:], bias[1:]), eps, rmsnorm_silu)
    else:
        x = joint[:, 2 * units :].contiguous()
    ends = weights.bounds, weights.embed, eps, out[:, 2 * units :]
    policy_action(x, scales[-1], weights.head, noise, action, *ends)


def actor_tail(
    weights: TailWeights, deter: Tensor, stoch: Tensor, noise: Tensor | None, action: Tensor, out: Tensor
) -> None:
    """Norm and SiLU of two embeddings; the policy's layers, its draw, and the draw cut to [-1, 1] and embedded.

    One launch where U fits (`dense_rows.fits`) and the layer on actions is within `EMBED_BYTES`; `actor_tail_launches`
    else. Without gradients.

    Args:
        weights: of all layers.
        deter: (N, 2 U), rows may be strided, of any floating dtype: before norms, the deterministic state's embedding
            and its share of the policy's first layer.
        stoch: (N, 2 U) in the dtype of deter, rows may be strided: the latents' embedding, and the rest of that layer.
        noise: (N, A) float32 contiguous, normal numbers; None takes the action that is in `action`.
        action: (N, A) float32 contiguous, where to write mean + deviation * noise.
        out: (N, 3 U) contiguous, where to write the three embeddings, the action's in the policy's place.
    """
    if not runs_triton(deter, stoch, weights.scales, action, out):
        actor_tail_reference(weights, deter, stoch, noise, action, out)
        return
    units, actions = weights.embed[0].shape
    size, drawn = padded(units), max(ROWS, padded(actions))
    if not fits(deter, units) or drawn * size * deter.itemsize > EMBED_BYTES:
        actor_tail_launches(weights, deter, stoch, noise, action, out)
        return
    _forward[(-(-len(deter) // ROWS), 3)](
        deter, deter.stride(0), stoch, stoch.stride(0), weights.scales, *weights.layers, *weights.head,
        action if noise is None else noise, action, *weights.embed, out, len(deter), weights.eps, *weights.bounds,
        LAYERS=len(weights.layers[0]), UNITS=units, ACTIONS=actions, FORCED=noise is None, ROWS=ROWS, SIZE=size,
        DRAWN=drawn, CHUNK=chunk(units, size, deter.dtype), HEAD_CHUNK=chunk(units, 2 * drawn, deter.dtype),
        EXACT=exact(deter), num_warps=WARPS,
    )  # fmt: skip


def _joint(deter: Tensor, stoch: Tensor) -> Tensor:
    """(N, 3 U): both embeddings and the policy's first layer."""
    (first, of_deter), (second, of_stoch) = deter.chunk(2, 1), stoch.chunk(2, 1)
    return torch.cat([first, second, of_deter + of_stoch], 1)


if HAS_TRITON:
    import triton
    import triton.language as tl

    from genreward_fast.kernels.dense_rows import dense_rows, linear_rows
    from genreward_fast.kernels.normed_rows import normed_rows
    from genreward_fast.kernels.rssm_tiles import product

    @triton.jit
    def _forward(
        deter, deter_stride, stoch, stoch_stride, scales, weight, bias, head, head_bias, noise, action, embed,
        embed_bias, embed_scale, out, rows, eps, low, high,
        LAYERS: tl.constexpr, UNITS: tl.constexpr, ACTIONS: tl.constexpr, FORCED: tl.constexpr, ROWS: tl.constexpr,
        SIZE: tl.constexpr, DRAWN: tl.constexpr, CHUNK: tl.constexpr, HEAD_CHUNK: tl.constexpr, EXACT: tl.constexpr,
    ):  # fmt: skip
        """Program (block, part): one of the three parts of some rows, the policy's, which takes longest, first."""
        kind = deter.dtype.element_ty
        part = 2 - tl.program_id(1)
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        column, inside = tl.arange(0, SIZE), row < rows
        real = column < UNITS
        wide, keep = row.to(tl.int64)[:, None], inside[:, None] & real[None, :]
        # The first part is of deter alone, the second of stoch; the policy's is the sum of two.
        source = part // 2 * UNITS + column[None, :]
        value = tl.load(deter + wide * deter_stride + source, mask=keep & (part != 1), other=0.0).to(tl.float32)
        value += tl.load(stoch + wide * stoch_stride + source, mask=keep & (part != 0), other=0.0).to(tl.float32)
        value = value.to(kind).to(tl.float32)
        factor = tl.load(scales + part * UNITS + column, mask=real, other=0.0)
        x = normed_rows(value, factor, UNITS, eps).to(kind)
        if part == 2:
            # What does not depend on the layers is asked for before them.
            a = tl.arange(0, DRAWN)
            to_target = tl.load(
                embed + column[None, :] * ACTIONS + a[:, None], mask=real[None, :] & (a < ACTIONS)[:, None], other=0.0
            )
            offset = tl.load(embed_bias + column, mask=real, other=0.0).to(tl.float32)
            factor = tl.load(embed_scale + column, mask=real, other=0.0)
            place = wide * ACTIONS + a[None, :]
            drawing = inside[:, None] & (a < ACTIONS)[None, :]
            drawn = tl.load(noise + place, mask=drawing, other=0.0)
            if not FORCED:
                slot = tl.arange(0, 2 * DRAWN)
                output, wanted = slot // DRAWN * ACTIONS + slot % DRAWN, slot % DRAWN < ACTIONS
                of_head = tl.load(head_bias + output, mask=wanted, other=0.0).to(tl.float32)
                x = dense_rows(x, weight, bias, scales + 3 * UNITS, column, real, eps, LAYERS, UNITS, CHUNK, EXACT)
                raw = linear_rows(x, head, output, wanted, UNITS, HEAD_CHUNK, EXACT) + of_head[None, :]
                raw = tl.reshape(raw.to(kind).to(tl.float32), [ROWS, 2, DRAWN])
                mean, stddev = tl.split(tl.permute(raw, [0, 2, 1]))
                mean = 2.0 * tl.sigmoid(2.0 * mean) - 1.0
                drawn = mean + ((high - low) * tl.sigmoid(stddev + 2.0) + low) * drawn
                tl.store(action + place, drawn, mask=drawing)
            cut = (drawn / tl.maximum(tl.abs(drawn), 1.0)).to(kind)
            acc = product(cut, to_target, tl.zeros([ROWS, SIZE], tl.float32), EXACT)
            y = (acc + offset[None, :]).to(kind).to(tl.float32)
            x = normed_rows(y, factor, UNITS, eps).to(kind)
        tl.store(out + wide * (3 * UNITS) + part * UNITS + column[None, :], x, mask=keep)
