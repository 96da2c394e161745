"""The policy's last layers and what the recurrent model makes of the action: from hidden rows to embedded actions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from genreward_fast.kernels.policy_loss import bounded_normal
from genreward_fast.kernels.rmsnorm_silu import rmsnorm_silu_reference
from genreward_fast.kernels.triton_support import HAS_TRITON, padded, runs_triton

ROWS = 4


def policy_action_reference(
    x: Tensor,
    scale: Tensor,
    head: tuple[Tensor, Tensor],
    noise: Tensor | None,
    action: Tensor,
    bounds: tuple[float, float],
    embed: tuple[Tensor, Tensor, Tensor],
    eps: float,
    out: Tensor,
) -> None:
    """What `policy_action` computes, in plain PyTorch."""
    raw = F.linear(rmsnorm_silu_reference(x, scale, eps), *head)
    mean, stddev = bounded_normal(raw, *bounds)
    if noise is not None:
        action.copy_(mean + stddev * noise)
    cut = (action / action.abs().clamp(min=1)).to(x.dtype)
    weight, bias, embed_scale = embed
    out.copy_(rmsnorm_silu_reference(F.linear(cut, weight, bias), embed_scale, eps))


def policy_action(
    x: Tensor,
    scale: Tensor,
    head: tuple[Tensor, Tensor],
    noise: Tensor | None,
    action: Tensor,
    bounds: tuple[float, float],
    embed: tuple[Tensor, Tensor, Tensor],
    eps: float,
    out: Tensor,
) -> None:
    """Norm and SiLU, mean and deviation, the draw, and the draw cut to [-1, 1] and embedded. Without gradients.

    Args:
        x: (N, U) contiguous, the policy's last hidden layer before its norm, of any floating dtype.
        scale: (U,) float32 of that norm.
        head: weight (2 A, U) and bias (2 A,) of mean and deviation, in the dtype of x, contiguous.
        noise: (N, A) float32 normal numbers; None takes the action that is in `action`.
        action: (N, A) float32 contiguous, where to write mean + deviation * noise.
        bounds: least and greatest deviation.
        embed: weight (H, A), bias (H,) in the dtype of x, and scale (H,) float32, of the layer on actions.
        eps: of both norms.
        out: (N, H), rows may be strided: where to write the embedded action.
    """
    if not runs_triton(x, scale, action, out):
        policy_action_reference(x, scale, head, noise, action, bounds, embed, eps, out)
        return
    rows, units = x.shape
    hidden, actions = embed[0].shape
    _forward[(-(-rows // ROWS),)](
        x, scale, *head, action if noise is None else noise, action, *embed, out, out.stride(0), rows, eps, *bounds,
        UNITS=units, HIDDEN=hidden, ACTIONS=actions, FORCED=noise is None, ROWS=ROWS, X_SIZE=padded(units),
        Y_SIZE=padded(hidden), num_warps=4,
    )  # fmt: skip


if HAS_TRITON:
    import triton
    import triton.language as tl

    from genreward_fast.kernels.normed_rows import normed_rows

    @triton.jit
    def _forward(
        x, scale, weight, bias, noise, action, embed, embed_bias, embed_scale, out, out_stride, rows, eps, low, high,
        UNITS: tl.constexpr, HIDDEN: tl.constexpr, ACTIONS: tl.constexpr, FORCED: tl.constexpr, ROWS: tl.constexpr,
        X_SIZE: tl.constexpr, Y_SIZE: tl.constexpr,
    ):  # fmt: skip
        kind = x.dtype.element_ty
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        inside = row < rows
        column, target = tl.arange(0, X_SIZE), tl.arange(0, Y_SIZE)
        real, wanted = column < UNITS, target < HIDDEN
        wide = row.to(tl.int64)[:, None]
        value = tl.load(x + wide * UNITS + column[None, :], mask=inside[:, None] & real[None, :], other=0.0)
        factor = tl.load(scale + column, mask=real, other=0.0)
        hidden = normed_rows(value.to(tl.float32), factor, UNITS, eps).to(kind).to(tl.float32)
        acc = tl.zeros([ROWS, Y_SIZE], tl.float32) + tl.load(embed_bias + target, mask=wanted, other=0.0)[None, :]
        for a in tl.static_range(ACTIONS):
            place = row * ACTIONS + a
            if FORCED:
                drawn = tl.load(action + place, mask=inside, other=0.0)
            else:
                to_mean = tl.load(weight + a * UNITS + column, mask=real, other=0.0).to(tl.float32)
                to_stddev = tl.load(weight + (ACTIONS + a) * UNITS + column, mask=real, other=0.0).to(tl.float32)
                mean = tl.sum(hidden * to_mean[None, :], 1) + tl.load(bias + a).to(tl.float32)
                stddev = tl.sum(hidden * to_stddev[None, :], 1) + tl.load(bias + ACTIONS + a).to(tl.float32)
                mean = 2.0 * tl.sigmoid(2.0 * mean.to(kind).to(tl.float32)) - 1.0
                stddev = (high - low) * tl.sigmoid(stddev.to(kind).to(tl.float32) + 2.0) + low
                drawn = mean + stddev * tl.load(noise + place, mask=inside, other=0.0)
                tl.store(action + place, drawn, mask=inside)
            cut = (drawn / tl.maximum(tl.abs(drawn), 1.0)).to(kind).to(tl.float32)
            acc += cut[:, None] * tl.load(embed + target * ACTIONS + a, mask=wanted, other=0.0).to(tl.float32)[None, :]
        factor = tl.load(embed_scale + target, mask=wanted, other=0.0)
        result = normed_rows(acc.to(kind).to(tl.float32), factor, HIDDEN, eps)
        keep = inside[:, None] & wanted[None, :]
        tl.store(out + wide * out_stride + target[None, :], result.to(kind), mask=keep)
