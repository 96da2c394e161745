"""Group norm over pieces of clips, SiLU, and the next convolution's padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def group_norm_silu_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    chunks: Sequence[int],
    *,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    before: int = 0,
    around: int = 0,
) -> tuple[Tensor, Tensor]:
    """What `group_norm_silu` computes, in plain PyTorch with float32 inside."""
    total = x
    if shift is not None or residual is not None:
        for term in (shift, residual):
            total = total if term is None else total.float() + term.float()
        total = total.to(x.dtype)
    parts = []
    for chunk in total.permute(0, 4, 1, 2, 3).split(list(chunks), 2):
        normed = functional.group_norm(chunk.float(), groups, weight.float(), bias.float(), eps)
        parts.append(functional.silu(normed, inplace=True).permute(0, 2, 3, 4, 1).to(x.dtype))
    out = torch.cat([parts[0][:, :1]] * before + parts, 1)
    return functional.pad(out, (0, 0, *(around,) * 4)) if around else out, total
