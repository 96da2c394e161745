"""Measures ops beside their references, for benchmarks that compare nothing else."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timing import Limits, measure_limits, median_ms, report
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One op at one shape.

    Attributes:
        name: of the variant; that of the reference is made from it.
        ours, reference: the same arguments to the same tensors.
        arguments: of both.
        size: bytes that must be moved.
        by: place of the argument whose gradient is measured, given one of ones; None for the op itself.
    """

    name: str
    ours: Callable[..., Any]
    reference: Callable[..., Any]
    arguments: tuple[Any, ...]
    size: int
    by: int | None = None


def compare(op: str, options: argparse.Namespace, cases: Callable[[int, torch.device, torch.dtype], tuple]) -> None:
    """Prints a table of all cases, (shape as text, cases) of each number of rows, and writes it where it is wanted.

    On CUDA the reference is measured compiled too.
    """
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    limits = measure_limits(device, dtype)
    results = []
    for rows in options.rows:
        shape, of_shape = cases(rows, device, dtype)
        for case in of_shape:
            results += _measured(case, shape, device, options, limits)
    report(op, limits, results, options.json)


def _measured(case: Case, shape: str, device: torch.device, options: Any, limits: Limits) -> list[dict[str, Any]]:
    plain = "reference" if case.name.isidentifier() else f"{case.name}, reference"
    variants = {case.name: case.ours, plain: case.reference}
    if device.type == "cuda":
        torch._dynamo.reset()
        variants[f"{plain} compiled"] = torch.compile(case.reference, dynamic=False)
    results, expected = [], _flat(_call(case, case.reference)())
    for name, function in variants.items():
        call = _call(case, function)
        found = _flat(call())
        ms = median_ms(call, device, options.seconds, flush=True)
        results.append(
            {
                "variant": name,
                "shape": shape,
                "dtype": options.dtype,
                "ms": ms,
                "GB/s": case.size / ms / 1e6,
                "% of limit": 100 * limits.milliseconds(case.size, 0) / ms,
                "relative error": float((found - expected).norm() / expected.norm()),
            }
        )
    return results


def _call(case: Case, function: Callable[..., Any]) -> Callable[[], Any]:
    if case.by is None:
        return lambda: function(*case.arguments)
    arguments = list(case.arguments)
    leaf = arguments[case.by] = arguments[case.by].detach().clone().requires_grad_()
    result = function(*arguments)
    first = result if isinstance(result, Tensor) else result[0]
    grad = torch.ones_like(first)
    return lambda: torch.autograd.grad(first, leaf, grad, retain_graph=True)[0]


def _flat(result: Any) -> Tensor:
    """All tensors of a result in one, in float64."""
    tensors = [result] if isinstance(result, Tensor) else result
    return torch.cat([x.detach().double().flatten() for x in tensors])
