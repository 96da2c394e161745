"""The gradients of a model's parameters, gathered from several losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Pairs = Sequence[tuple[Tensor, Tensor]]
"""Tensors, and the gradient by each."""


class Gradients:
    """What one update knows of the gradients so far.

    Losses that share no part of their graphs may be differentiated one by one, each as soon as it is there and on the
    stream where it was computed.
    """

    def __init__(self, names: Sequence[str], leaves: Sequence[Sequence[Tensor]]) -> None:
        """
        Args:
            names: of the parameters.
            leaves: for each parameter the tensors that stand for it in the graphs; more may come in the meantime.
        """
        self._names, self._leaves = names, leaves
        self._found: list[list[Tensor]] = [[] for _ in names]

    def add(self, ends: Pairs, inputs: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
        """Differentiates the sum of their products, and frees the graph.

        Args:
            ends: where to begin: tensors, and the gradient by each.
            inputs: leaves of the graph other than the parameters; all of them must matter.

        Returns:
            The gradients by the inputs.
        """
        leaves = [(i, leaf) for i, group in enumerate(self._leaves) for leaf in group]
        outputs, by = zip(*ends)
        found = torch.autograd.grad(outputs, [*inputs, *(leaf for _, leaf in leaves)], by, allow_unused=True)
        for (i, _), gradient in zip(leaves, found[len(inputs) :]):
            if gradient is not None:
                self._found[i].append(gradient)
        assert all(gradient is not None for gradient in found[: len(inputs)])
        return found[: len(inputs)]

    def total(self) -> list[list[Tensor]]:
        """For each parameter one gradient or more, whose sum is that of all that was added; in the dtype of its use.

        Raises:
            RuntimeError: nothing added so far depends on a parameter.
        """
        for name, group in zip(self._names, self._found):
            if not group:
                raise RuntimeError(f"the loss does not depend on {name}")
        return self._found
