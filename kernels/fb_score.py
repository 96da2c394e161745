"""The frame-level reward: F(s, a, z_g)·B(g) of a forward-backward representation, for one goal that stays the same.

Each head k of F is [ψ(s), a, z] → Linear → LayerNorm → tanh → Linear → ReLU → Linear to d (Touati & Ollivier 2021).
With z and B(g) fixed, z's part of the first layer is a constant that joins its bias, and the last layer followed by the
product with B(g) is one H-vector and a constant: F_k·B = relu(...)·(W₃ᵀ B) + b₃·B.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from genreward_fast.kernels.triton_support import HAS_TRITON, INTERPRETED, runs_triton, wide

ROWS = 16
COLUMNS = 32
DEPTH = 64


class StackedAffine(Protocol):
    """K layers of one shape: weight (K, out, in) or, for a norm, (K, H); bias (K, out)."""

    @property
    def weight(self) -> Tensor: ...
    @property
    def bias(self) -> Tensor: ...


class StackedNorm(StackedAffine, Protocol):
    """K layer norms."""

    @property
    def eps(self) -> float: ...


class ForwardHeads(Protocol):
    """The K heads of F: the first layer's inputs are ψ(s) of size D, a of size A and z of size d, in this order."""

    @property
    def first(self) -> StackedAffine: ...
    @property
    def norm(self) -> StackedNorm: ...
    @property
    def second(self) -> StackedAffine: ...
    @property
    def last(self) -> StackedAffine: ...


class FoldedScore(NamedTuple):
    """F with z and B(g) folded in, all contiguous and of one floating dtype, but for `offset`.

    Attributes:
        weight1: (K, H, D + A), bias1: (K, H), the first layer with z's part in its bias.
        norm_weight, norm_bias: (K, H).
        weight2: (K, H, H), bias2: (K, H).
        direction: (K, H), W₃ᵀ B(g).
        offset: (K,) float32, b₃·B(g).
        eps: of the norm.
    """

    weight1: Tensor
    bias1: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    weight2: Tensor
    bias2: Tensor
    direction: Tensor
    offset: Tensor
    eps: float

    def to(self, dtype: torch.dtype) -> FoldedScore:
        """The same with weights and biases rounded to `dtype`."""
        rounded: dict[str, Any] = {name: getattr(self, name).to(dtype) for name in self._fields[:7]}
        return self._replace(**rounded)


@torch.no_grad()
def fold(heads: ForwardHeads, z: Tensor, goal: Tensor) -> FoldedScore:
    """Computes once what depends on the goal and the weights alone; valid until the weights change.

    Args:
        heads: F.
        z: (d,), the vector that F is given.
        goal: (d,), B(g), which F's output is multiplied with.

    Returns:
        In float32.
    """
    weight1 = heads.first.weight.float()
    inputs = weight1.shape[2] - z.numel()
    return FoldedScore(
        weight1=_copy(weight1[:, :, :inputs]),
        bias1=_copy(heads.first.bias.float() + weight1[:, :, inputs:] @ z.float()),
        norm_weight=_copy(heads.norm.weight),
        norm_bias=_copy(heads.norm.bias),
        weight2=_copy(heads.second.weight),
        bias2=_copy(heads.second.bias),
        direction=_copy(torch.einsum("kdh,d->kh", heads.last.weight.float(), goal.float())),
        offset=_copy(heads.last.bias.float() @ goal.float()),
        eps=heads.norm.eps,
    )


def _copy(value: Tensor) -> Tensor:
    """Contiguous float32 that shares no memory with a weight, which may go on being trained."""
    return value.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def fb_score_reference(feature: Tensor, action: Tensor, folded: FoldedScore, reduce: str = "min") -> Tensor:
    """What `fb_score` computes, in plain float32 PyTorch."""
    inputs = torch.cat([wide(feature), wide(action)], dim=-1)
    weights = folded.to(inputs.dtype)
    heads = []
    for k in range(weights.weight1.shape[0]):
        hidden = functional.linear(inputs, weights.weight1[k], weights.bias1[k])
        hidden = functional.layer_norm(
            hidden, hidden.shape[-1:], weights.norm_weight[k], weights.norm_bias[k], weights.eps
        )
        hidden = torch.relu(functional.linear(torch.tanh(hidden), weights.weight2[k], weights.bias2[k]))
        heads.append(hidden @ weights.direction[k] + weights.offset[k])
    values = torch.stack(heads)
    return values.amin(dim=0) if reduce == "min" else values.mean(dim=0)


# Beyond this the library's matrix products are faster (benchmarks/results/kernel_fb_score.json).
MAX_ROWS = 512


@torch.no_grad()
def fb_score(feature: Tensor, action: Tensor, folded: FoldedScore, reduce: str = "min") -> Tensor:
    """r_FB = min or mean over k of F_k(s, a, z_g)·B(g).

    The products are taken in the dtype of `folded`, with sums in float32.

    Args:
        feature: (M, D) of any floating dtype, ψ(s).
        action: (M, A) of any floating dtype.
        folded: from `fold`.
        reduce: "min" or "mean", over the heads.

    Returns:
        (M,) float32.

    Raises:
        ValueError: shapes do not fit the folded weights, or `reduce` is something else.
    """
    if reduce not in ("min", "mean"):
        raise ValueError(f"reduce must be min or mean, not {reduce!r}")
    inputs = folded.weight1.shape[2]
    if feature.dim() != 2 or action.dim() != 2 or len(feature) != len(action):
        raise ValueError(f"feature must be (M, D) and action (M, A), not {tuple(feature.shape)}, {tuple(action.shape)}")
    if feature.shape[1] + action.shape[1] != inputs:
        raise ValueError(f"{feature.shape[1]} features and {action.shape[1]} actions are not the {inputs} inputs of F")
    if not runs_triton(feature, action, folded.weight1) or not 0 < len(feature) <= MAX_ROWS:
        return fb_score_reference(feature, action, folded, reduce)
    return _launch(feature.contiguous(), action.contiguous(), folded, reduce)


def _launch(feature: Tensor, action: Tensor, folded: FoldedScore, reduce: str) -> Tensor:
    rows, features = feature.shape
    heads, hidden, inputs = folded.weight1.shape
    row_blocks, tiles = -(-rows // ROWS), -(-hidden // COLUMNS)
    device = feature.device
    first = torch.empty((heads, rows, hidden), dtype=torch.float32, device=device)
    partial = torch.empty((heads, tiles, rows), dtype=torch.float32, device=device)
    score = torch.empty((rows,), dtype=torch.float32, device=device)
    grid = (row_blocks, tiles, heads)
    _first_layer[grid](
        feature, action, folded.weight1, folded.bias1, first, rows, features, inputs - features, hidden,
        ROWS=ROWS, COLUMNS=COLUMNS, DEPTH=DEPTH, num_warps=4,
    )  # fmt: skip
    _second_layer[grid](
        first, folded.norm_weight, folded.norm_bias, folded.weight2, folded.bias2, folded.direction, partial,
        rows, hidden, folded.eps, ROWS=ROWS, COLUMNS=COLUMNS, DEPTH=DEPTH, num_warps=4,
    )  # fmt: skip
    _reduce_heads[(-(-rows // 128),)](
        partial, folded.offset, score, rows, heads, tiles, MEAN=reduce == "mean", ROWS=128, num_warps=4
    )
    return score


if HAS_TRITON:
    import triton
    import triton.language as tl

    _UPCAST = tl.constexpr(INTERPRETED)

    @triton.jit
    def _dot(left, right, total):
        """total + left @ right, left rounded to the dtype of right, sums in float32 (IEEE, not tf32)."""
        left = left.to(right.dtype)
        if _UPCAST:  # the interpreter takes the bits of a bfloat16 for an integer; in float32 the products are the same
            left, right = left.to(tl.float32), right.to(tl.float32)
        return tl.dot(left, right, total, input_precision="ieee")

    @triton.jit
    def _add_product(total, x, weight, row, column, rows, hidden, size, stride, DEPTH: tl.constexpr):
        """total (ROWS, COLUMNS) + x (rows, size) @ weightᵀ for weight (hidden, size) with rows `stride` apart."""
        for start in range(0, size, DEPTH):
            k = start + tl.arange(0, DEPTH)
            left = tl.load(
                x + row[:, None].to(tl.int64) * size + k[None, :],
                mask=(row < rows)[:, None] & (k < size)[None, :],
                other=0.0,
            )
            right = tl.load(
                weight + column[None, :] * stride + k[:, None],
                mask=(column < hidden)[None, :] & (k < size)[:, None],
                other=0.0,
            )
            total = _dot(left, right, total)
        return total

    @triton.jit
    def _first_layer(
        feature, action, weight, bias, out, rows, features, actions, hidden,
        ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    ):  # fmt: skip
        """Program (row block, column block, head): one tile of [feature, action] @ weightᵀ + bias."""
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        head = tl.program_id(2).to(tl.int64)
        stride = features + actions
        weight += head * hidden * stride
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        total = _add_product(total, feature, weight, row, column, rows, hidden, features, stride, DEPTH)
        total = _add_product(total, action, weight + features, row, column, rows, hidden, actions, stride, 16)
        total += tl.load(bias + head * hidden + column, mask=column < hidden, other=0.0).to(tl.float32)[None, :]
        position = (head * rows + row[:, None]) * hidden + column[None, :]
        tl.store(out + position, total, mask=(row < rows)[:, None] & (column < hidden)[None, :])

    @triton.jit
    def _second_layer(
        first, norm_weight, norm_bias, weight, bias, direction, partial, rows, hidden, eps,
        ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    ):  # fmt: skip
        """Program (row block, column block, head): a share of relu(tanh(norm(first)) @ weightᵀ + bias)·direction."""
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        head = tl.program_id(2).to(tl.int64)
        first += (head * rows + row[:, None]) * hidden
        there = (row < rows)[:, None]
        # Each program takes the statistics of its rows by itself: two passes over a few KiB that lie in the cache.
        total = tl.zeros([ROWS], tl.float32)
        for start in range(0, hidden, DEPTH):
            k = start + tl.arange(0, DEPTH)
            total += tl.sum(tl.load(first + k[None, :], mask=there & (k < hidden)[None, :], other=0.0), axis=1)
        mean = total / hidden
        total = tl.zeros([ROWS], tl.float32)
        for start in range(0, hidden, DEPTH):
            k = start + tl.arange(0, DEPTH)
            inside = there & (k < hidden)[None, :]
            centred = tl.where(inside, tl.load(first + k[None, :], mask=inside, other=0.0) - mean[:, None], 0.0)
            total += tl.sum(centred * centred, axis=1)
        scale = 1.0 / tl.sqrt(total / hidden + eps)

        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        weight += head * hidden * hidden
        for start in range(0, hidden, DEPTH):
            k = start + tl.arange(0, DEPTH)
            x = tl.load(first + k[None, :], mask=there & (k < hidden)[None, :], other=0.0)
            gain = tl.load(norm_weight + head * hidden + k, mask=k < hidden, other=0.0).to(tl.float32)
            shift = tl.load(norm_bias + head * hidden + k, mask=k < hidden, other=0.0).to(tl.float32)
            x = (x - mean[:, None]) * scale[:, None] * gain[None, :] + shift[None, :]
            x = 2.0 * tl.sigmoid(2.0 * x) - 1.0  # tanh
            right = tl.load(
                weight + column[None, :] * hidden + k[:, None],
                mask=(column < hidden)[None, :] & (k < hidden)[:, None],
                other=0.0,
            )
            total = _dot(x, right, total)
        total += tl.load(bias + head * hidden + column, mask=column < hidden, other=0.0).to(tl.float32)[None, :]
        towards = tl.load(direction + head * hidden + column, mask=column < hidden, other=0.0).to(tl.float32)
        # Not tl.maximum: a NaN must stay one.
        share = tl.sum(tl.where(total < 0, 0.0, total) * towards[None, :], axis=1)
        tile = head * tl.num_programs(1) + tl.program_id(1)
        tl.store(partial + tile * rows + row, share, mask=row < rows)

    @triton.jit
    def _reduce_heads(partial, offset, score, rows, heads, tiles, MEAN: tl.constexpr, ROWS: tl.constexpr):
        """Program (row block): adds up each head's shares in a fixed order, then takes the heads' mean or minimum."""
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        result = tl.zeros([ROWS], tl.float32)
        for head in range(heads):
            value = tl.zeros([ROWS], tl.float32) + tl.load(offset + head)
            for tile in range(tiles):
                where = partial + (head * tiles + tile).to(tl.int64) * rows + row
                value += tl.load(where, mask=row < rows, other=0.0)
            if MEAN:
                result += value
            else:
                # A NaN of any head must show, as it does in torch.amin.
                lower = (head == 0) | (value < result) | (value != value)
                result = tl.where(lower, value, result)
        if MEAN:
            result = result / heads
        tl.store(score + row, result, mask=row < rows)
