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

from genreward_fast.kernels.rssm_tiles import launch_options
from genreward_fast.kernels.triton_support import HAS_TRITON, padded, runs_triton, wide

if HAS_TRITON:
    from genreward_fast.kernels.fb_score_kernels import _norm, _product, _score


class Tiling(NamedTuple):
    """How the product of a layer is cut into programs.

    Attributes:
        rows, columns: of a program's tile; powers of two from 16 on, as is
        depth: how much of the inner dimension a program takes at a time.
        splits: over how many programs the inner dimension is split at most.
        warps: of a program.
        stages: how many of a program's steps are under way at once.
        precision: of float32 products, as `tl.dot` takes it: "tf32x3", or "ieee" without tensor cores.
    """

    rows: int
    columns: int
    depth: int
    splits: int
    warps: int = 4
    stages: int = 3
    precision: str = "tf32x3"


# With the paper's two heads of 512 units each of them makes 96 to 128 programs of the most rows that it is for, one for
# each of an H100's multiprocessors. With 64 rows Triton takes that chip's other tensor cores, for which both parts of a
# float32 go through shared memory; with 32 x 32 it leaves half of the warps without work of their own.
TILINGS = (
    (16, Tiling(16, 32, 128, 4)),
    (32, Tiling(32, 64, 64, 8)),
    (64, Tiling(32, 64, 64, 4)),
    (128, Tiling(32, 64, 64, 2)),
    (256, Tiling(32, 64, 64, 1)),
)
"""The most rows that a tiling is made for, and the tiling; the last one takes more, too."""
MAX_ROWS = 512
"""Larger batches take the library's matrix products."""
MAX_HIDDEN = 4096
"""The widest layer that one program takes the norm of."""


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


@torch.no_grad()
def fb_score(
    feature: Tensor, action: Tensor, folded: FoldedScore, reduce: str = "min", tiling: Tiling | None = None
) -> Tensor:
    """r_FB = min or mean over k of F_k(s, a, z_g)·B(g).

    The products are taken in the dtype of `folded`, with sums in float32. A product of float32 is three of tf32, of the
    upper and lower parts of both factors, which leaves out 2⁻²² of it. A result repeats exactly.

    Args:
        feature: (M, D) of any floating dtype, ψ(s).
        action: (M, A) of any floating dtype.
        folded: from `fold`.
        reduce: "min" or "mean", over the heads.
        tiling: how the kernels cut the products; None takes the one made for so many rows.

    Returns:
        (M,) float32.

    Raises:
        ValueError: shapes do not fit the folded weights, or `reduce` is something else.
    """
    if reduce not in ("min", "mean"):
        raise ValueError(f"reduce must be min or mean, not {reduce!r}")
    _, hidden, inputs = folded.weight1.shape
    if feature.dim() != 2 or action.dim() != 2 or len(feature) != len(action):
        raise ValueError(f"feature must be (M, D) and action (M, A), not {tuple(feature.shape)}, {tuple(action.shape)}")
    if feature.shape[1] + action.shape[1] != inputs:
        raise ValueError(f"{feature.shape[1]} features and {action.shape[1]} actions are not the {inputs} inputs of F")
    few = len(feature) <= MAX_ROWS or tiling is not None
    if not runs_triton(feature, action, folded.weight1) or len(feature) == 0 or not few or hidden > MAX_HIDDEN:
        return fb_score_reference(feature, action, folded, reduce)
    return _launch(feature.contiguous(), action.contiguous(), folded, reduce, tiling or tiling_for(len(feature)))


def tiling_for(rows: int) -> Tiling:
    """The tiling made for so many rows."""
    return next((tiling for most, tiling in TILINGS if rows <= most), TILINGS[-1][1])


def _launch(feature: Tensor, action: Tensor, folded: FoldedScore, reduce: str, tiling: Tiling) -> Tensor:
    rows = len(feature)
    heads, hidden, _ = folded.weight1.shape
    options = launch_options(feature.device)
    padding = padded(hidden)
    # The first kernel must not start before all that came before has written what it writes, the weights, too.
    first = _multiply(feature, action, folded.weight1, tiling, {"PDL": options["PDL"]})
    normed = torch.empty((heads, rows, hidden), dtype=torch.float32, device=feature.device)
    _norm[(rows, heads)](
        first, folded.bias1, folded.norm_weight, folded.norm_bias, normed, rows, folded.eps,
        HIDDEN=hidden, PADDED=padding, SPLITS=len(first), num_warps=4, **options,
    )  # fmt: skip
    second = _multiply(normed, None, folded.weight2, tiling, options)
    score = torch.empty((rows,), dtype=torch.float32, device=feature.device)
    _score[(rows,)](
        second, folded.bias2, folded.direction, folded.offset, score, rows,
        HEADS=heads, HEADS_PADDED=padded(heads), HIDDEN=hidden, PADDED=padding, SPLITS=len(second),
        MEAN=reduce == "mean", num_warps=4, **options,
    )  # fmt: skip
    return score


def _multiply(x: Tensor, action: Tensor | None, weight: Tensor, tiling: Tiling, options: dict[str, bool]) -> Tensor:
    """[x, action] @ weightᵀ of each head in parts that add up to it: (splits, K, M, H) float32.

    Args:
        x: (M, D) for all heads, or (K, M, D).
        action: (M, A), or None for none.
        weight: (K, H, D + A).
        tiling: how to cut it.
        options: of the launch.
    """
    heads, hidden, _ = weight.shape
    rows, features = x.shape[-2:]
    actions = 0 if action is None else action.shape[1]
    blocks = -(-features // tiling.depth)
    steps = -(-blocks // tiling.splits)
    splits = -(-blocks // steps)
    parts = torch.empty((splits, heads, rows, hidden), dtype=torch.float32, device=x.device)
    _product[(-(-rows // tiling.rows), -(-hidden // tiling.columns), heads * splits)](
        x, x.stride(0) if x.dim() == 3 else 0, x if action is None else action, weight, parts, rows,
        FEATURES=features, ACTIONS=actions, HIDDEN=hidden, ROWS=tiling.rows, COLUMNS=tiling.columns,
        DEPTH=tiling.depth, EXTRA=max(16, padded(actions)), STEPS=steps, SPLITS=splits, STAGES=tiling.stages,
        PRECISION=tiling.precision, num_warps=tiling.warps, **options,
    )  # fmt: skip
    return parts
