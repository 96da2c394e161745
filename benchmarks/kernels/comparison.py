"""One differentiable op beside its reference and, on CUDA, beside its reference under torch.compile."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
from timing import Limits, median_ms
from torch import Tensor


def compare(
    name: str,
    op: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    leaves: tuple[Tensor, ...],
    others: tuple[Any, ...],
    sizes: tuple[int, int],
    shape: str,
    options: Namespace,
    limits: Limits,
    peers: dict[str, Callable[..., Tensor]] | None = None,
    flops: int = 0,
) -> list[dict[str, Any]]:
    """Times op(*leaves, *others) and its gradients by the leaves, if there are any.

    Args:
        sizes: bytes that the op and its gradients move at least.
        peers: other ways to compute the same.
        flops: that the op does at least, and its gradients.
    """
    device = torch.device(options.device)
    functions = {"": op, "reference": reference}
    if device.type == "cuda":
        functions["compiled reference"] = torch.compile(reference, dynamic=False)
    functions |= peers or {}
    leaves = tuple(leaf.clone().requires_grad_() for leaf in leaves)
    results: list[dict[str, Any]] = []
    made = {variant: function(*leaves, *others) for variant, function in functions.items()}
    grad = torch.randn_like(made[""])
    for gradients in (False, True) if leaves else (False,):
        calls: dict[str, Callable[[], Tensor]] = {}
        for variant, function in functions.items():
            if gradients:

                def call(y: Tensor = made[variant]) -> Tensor:
                    return torch.autograd.grad(y, leaves, grad, retain_graph=True)[0]

            else:

                def call(function: Callable[..., Tensor] = function) -> Tensor:
                    with torch.no_grad():
                        return function(*leaves, *others)

            calls[variant] = call
        expected = calls["reference"]().double()
        for variant, call in calls.items():
            error = float((call().double() - expected).norm() / expected.norm())
            ms = median_ms(call, device, options.seconds, flush=True)
            size = sizes[gradients]
            title = "gradients" + (variant and f", {variant}") if gradients else variant or name
            results.append(
                {
                    "variant": title,
                    "shape": shape,
                    "dtype": options.dtype,
                    "ms": ms,
                    "GB/s": size / ms / 1e6,
                    "% of limit": 100 * limits.milliseconds(size, flops) / ms,
                    "relative error": error,
                }
            )
    return results
