"""One step of the block GRU with all that its gradient needs kept: the fast form of `RSSM.core`."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from genreward_fast.agent.nets import NORM_EPS
from genreward_fast.kernels.column_sums import column_sums
from genreward_fast.kernels.gru_gates import gru_gates, gru_gates_backward
from genreward_fast.kernels.rmsnorm_silu import rmsnorm_silu_backward, rmsnorm_silu_forward


@dataclass(frozen=True)
class CoreWeights:
    """The GRU's weights in the dtype of the states; D deter, H hidden, F = stoch * classes, d = D / blocks.

    The hidden layer's weight is taken apart by its inputs: all blocks see the same embedded state and action, so that
    part is one dense matrix. What comes from the action is computed before a scan and is not among these.
    """

    deter_in: Tensor  # (H, D)
    stoch_in: Tensor  # (H, F)
    in_bias: Tensor  # (2 H,)
    in_scale: Tensor  # (2, H) float32, the two norms'
    hidden: Tensor  # (blocks, d, d)
    shared: Tensor  # (2 H, D)
    hidden_scale: Tensor  # (D,) float32
    gates: Tensor  # (blocks, d, 3 d)
    gates_bias: Tensor  # (3 D,)

    def tensors(self) -> list[Tensor]:
        """All of them, in the order of the constructor."""
        return [getattr(self, field.name) for field in fields(self)]


@dataclass(frozen=True)
class CoreValues:
    """What one step, or each of T steps, computes on its way; `step` gives the values of one of T."""

    embedded: Tensor  # (..., N, 2 H) before the norms
    shared: Tensor  # (..., N, 2 H) after
    hidden: Tensor  # (..., N, D) before the norm
    active: Tensor  # (..., N, D) after
    gates: Tensor  # (..., N, 3 D) without their bias

    @classmethod
    def make(cls, weights: CoreWeights, hidden: Tensor) -> CoreValues:
        """Around `hidden`, which holds the action's share of the hidden layer, bias included, and is used up."""
        *rows, size = hidden.shape
        embedded = weights.in_bias.expand(*rows, -1).clone(memory_format=torch.contiguous_format)
        gates = hidden.new_empty(*rows, 3 * size)
        return cls(embedded, torch.empty_like(embedded), hidden, torch.empty_like(hidden), gates)

    def step(self, t: int) -> CoreValues:
        return CoreValues(self.embedded[t], self.shared[t], self.hidden[t], self.active[t], self.gates[t])


def core_forward(weights: CoreWeights, deter: Tensor, stoch: Tensor, values: CoreValues, out: Tensor) -> None:
    """The next deter, into `out`.

    Args:
        deter, stoch: (N, D) and (N, F), contiguous.
        values: as `CoreValues.make` leaves them; filled here.
        out: (N, D) contiguous.
    """
    size, blocks = weights.deter_in.shape[0], weights.hidden.shape[0]
    # All matrix products add to what is there, so that none needs a bias added or a result copied.
    values.embedded[:, :size].addmm_(deter, weights.deter_in.t())
    values.embedded[:, size:].addmm_(stoch, weights.stoch_in.t())
    rmsnorm_silu_forward(values.embedded, weights.in_scale, NORM_EPS, values.shared)
    values.hidden.addmm_(values.shared, weights.shared)
    by_block(values.hidden, blocks).baddbmm_(by_block(deter, blocks), weights.hidden)
    rmsnorm_silu_forward(values.hidden, weights.hidden_scale, NORM_EPS, values.active)
    torch.bmm(by_block(values.active, blocks), weights.gates, out=by_block(values.gates, blocks))
    gru_gates(values.gates, weights.gates_bias, deter, blocks, out)


def core_backward(
    weights: CoreWeights, by_out: Tensor, more: Tensor, deter: Tensor, values: CoreValues, grads: CoreValues
) -> tuple[Tensor, Tensor]:
    """The gradients of `core_forward` by deter and stoch.

    Args:
        by_out, more: (N, D) contiguous, two summands of the gradient by the next deter.
        deter: what `core_forward` was given.
        values: what it computed.
        grads: where to write the gradients by `embedded`, `hidden` and `gates`, which those by weights are made of;
            its `shared` and `active` are used up.
    """
    size, blocks = weights.deter_in.shape[0], weights.hidden.shape[0]
    by_deter = gru_gates_backward(by_out, more, values.gates, weights.gates_bias, deter, blocks, grads.gates)
    torch.bmm(by_block(grads.gates, blocks), weights.gates.transpose(1, 2), out=by_block(grads.active, blocks))
    rmsnorm_silu_backward(grads.active, values.hidden, weights.hidden_scale, NORM_EPS, grads.hidden, sums=False)
    by_block(by_deter, blocks).baddbmm_(by_block(grads.hidden, blocks), weights.hidden.transpose(1, 2))
    torch.mm(grads.hidden, weights.shared.t(), out=grads.shared)
    rmsnorm_silu_backward(grads.shared, values.embedded, weights.in_scale, NORM_EPS, grads.embedded, sums=False)
    by_deter.addmm_(grads.embedded[:, :size], weights.deter_in)
    return by_deter, grads.embedded[:, size:] @ weights.stoch_in


def weight_gradients(
    weights: CoreWeights, deter: Tensor, stoch: Tensor, values: CoreValues, grads: CoreValues
) -> list[Tensor]:
    """The gradients of all steps by the weights, in the order of `CoreWeights.tensors`: one product for each weight.

    Args:
        deter, stoch: (R, ...), the states before each of R rows.
        values, grads: of the same rows.
    """
    size, blocks = weights.deter_in.shape[0], weights.hidden.shape[0]
    _, in_sums = rmsnorm_silu_backward(grads.shared, values.embedded, weights.in_scale, NORM_EPS)
    _, hidden_sums = rmsnorm_silu_backward(grads.active, values.hidden, weights.hidden_scale, NORM_EPS)
    assert in_sums is not None
    assert hidden_sums is not None
    return [
        grads.embedded[:, :size].t() @ deter,
        grads.embedded[:, size:].t() @ stoch,
        in_sums[1].flatten(),
        in_sums[0],
        torch.bmm(by_block(deter, blocks).transpose(1, 2), by_block(grads.hidden, blocks)),
        values.shared.t() @ grads.hidden,
        hidden_sums[0],
        torch.bmm(by_block(values.active, blocks).transpose(1, 2), by_block(grads.gates, blocks)),
        column_sums(grads.gates, grads.gates.dtype),
    ]


def by_block(x: Tensor, blocks: int) -> Tensor:
    """(N, blocks * n) seen as (blocks, N, n)."""
    return x.view(x.shape[0], blocks, -1).transpose(0, 1)
