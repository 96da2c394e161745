"""The parameters of a model as views of one buffer, and their copies in the dtype that the networks compute in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from genreward_fast.agent.nets import Layer
from genreward_fast.kernels.laprop import Segments


class Flat:
    """Moves tensors of one dtype into one buffer, in their order; they stay the same objects, with the same values.

    Attributes:
        names, tensors: as given.
        segments: where they lie.
        buffer: (segments.total,) in their dtype, float32 or float64, zero between them.
    """

    def __init__(self, named: Iterable[tuple[str, Tensor]]) -> None:
        self.names, self.tensors = map(list, zip(*named))
        device = self.tensors[0].device
        self.segments = Segments.make([tensor.numel() for tensor in self.tensors], device)
        self.buffer = self.zeros()
        for tensor, view in zip(self.tensors, self.views(self.buffer)):
            view.copy_(tensor.detach())
            tensor.data = view

    def zeros(self, dtype: torch.dtype | None = None) -> Tensor:
        """Another buffer of the same layout, in the tensors' dtype unless told."""
        first = self.tensors[0]
        return torch.zeros(self.segments.total, dtype=dtype or first.dtype, device=first.device)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """What belongs to each tensor in a buffer of this layout, in the tensor's shape."""
        return [view.view(t.shape) for view, t in zip(self.segments.views(buffer), self.tensors)]

    def start(self, prefix: str) -> int:
        """Where the tensors begin whose names start with `prefix`, which must be the last ones."""
        first = next(i for i, name in enumerate(self.names) if name.startswith(prefix))
        assert all(name.startswith(prefix) for name in self.names[first:])
        return self.segments.starts[first]


class Casts:
    """The parameters rounded to the compute dtype, once for each change of theirs, for `Layer.cast`.

    While `recording`, every use of a trained parameter is a leaf of its own, so that the gradients of several uses can
    be added in float32. Outside, a use that takes gradients rounds the parameter anew.

    Attributes:
        buffer: the copies, laid out as the parameters. Who changes the parameters by other ways than their own in-place
            operations must write here, too.
    """

    def __init__(self, flat: Flat, dtype: torch.dtype, module: nn.Module) -> None:
        """Lends the copies to all layers of `module` that own one of the parameters."""
        self.flat, self.dtype = flat, dtype
        self.buffer = flat.zeros(dtype)
        self._copies = flat.views(self.buffer)
        self._versions = -1
        self._uses: list[list[Tensor]] | None = None
        order = {id(tensor): i for i, tensor in enumerate(flat.tensors)}
        for layer in module.modules():
            if isinstance(layer, Layer):
                own = [(name, p) for name, p in layer.named_parameters(recurse=False) if id(p) in order]
                layer.copies = {**layer.copies, **{name: partial(self._use, order[id(p)]) for name, p in own}}
        self.refresh()

    def refresh(self, force: bool = False) -> None:
        """Rounds all parameters if one has been written to since the last time; the host alone decides that."""
        versions = sum([tensor._version for tensor in self.flat.tensors])
        if force or versions != self._versions:
            self.buffer.copy_(self.flat.buffer)
            self._versions = versions

    @contextmanager
    def recording(self) -> Iterator[list[list[Tensor]]]:
        """Gives the list of each parameter and its uses inside, which grows with them."""
        self._uses = [[tensor] for tensor in self.flat.tensors]
        try:
            yield self._uses
        finally:
            self._uses = None

    def _use(self, position: int) -> Tensor:
        parameter, copy = self.flat.tensors[position], self._copies[position]
        if not (parameter.requires_grad and torch.is_grad_enabled()):
            return copy
        if self._uses is None:
            return parameter.to(self.dtype)
        leaf = copy.detach().requires_grad_()
        self._uses[position].append(leaf)
        return leaf


def collect(views: Sequence[Tensor], gradients: Sequence[Sequence[Tensor]]) -> None:
    """Writes the sum of each group of gradients to its view: a few launches for all of them together.

    Args:
        views: float32 or float64, each flat.
        gradients: for each view one or more of its size, of any floating dtype and shape.
    """
    _copy(views, [group[0] for group in gradients])
    for use in range(1, max(map(len, gradients))):
        more = [(view, group[use]) for view, group in zip(views, gradients) if len(group) > use]
        targets, wide = [view for view, _ in more], [torch.empty_like(view) for view, _ in more]
        _copy(wide, [gradient for _, gradient in more])
        torch._foreach_add_(targets, wide)


def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    # The fused copy wants one dtype and equal strides; one pair that has others would make all of them slow.
    groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for target, source in zip(targets, sources):
        if source.is_contiguous():
            lists = groups.setdefault(source.dtype, ([], []))
            lists[0].append(target)
            lists[1].append(source.view(-1))
        else:
            target.view(source.shape).copy_(source)
    for lists in groups.values():
        torch._foreach_copy_(*lists)
