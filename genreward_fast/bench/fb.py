"""Times `fb_score` at the paper's sizes, beside eager PyTorch with and without folding."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from genreward_fast.bench.timing import arguments, graph_of, measure_limits, median_ms, report
from genreward_fast.kernels.fb_score import Tiling, fb_score, fb_score_reference, fold

FEATURES, ACTIONS, Z, HIDDEN, HEADS = 384, 4, 64, 512, 2
IN_A_GRAPH = 20
"""Calls that follow each other in one CUDA graph, where nothing but them is timed."""
TRIALS = (
    *(Tiling(16, 32, 128, splits) for splits in (1, 2, 4)),
    *(Tiling(16, 32, 64, splits) for splits in (2, 4, 8)),
    *(Tiling(16, 64, 64, splits) for splits in (1, 2, 4, 8)),
    *(Tiling(32, 64, 64, splits) for splits in (1, 2, 4, 8)),
    *(Tiling(32, 64, 64, splits, warps=8) for splits in (1, 2)),
    *(Tiling(32, 64, 64, splits, stages=4) for splits in (1, 2)),
    *(Tiling(32, 64, 32, splits, stages=4) for splits in (1, 2, 4)),
    *(Tiling(64, 32, 64, splits) for splits in (1, 2)),
    *(Tiling(64, 64, 32, splits, warps=8, stages=4) for splits in (1, 2)),
    Tiling(16, 32, 128, 4, precision="ieee"),
    *(Tiling(32, 64, 64, splits, precision="ieee") for splits in (1, 2)),
)
"""What `--tune` tries."""


def make_heads(device: torch.device) -> SimpleNamespace:
    """F at the paper's sizes with random weights."""

    def affine(outputs: int, size: int) -> SimpleNamespace:
        weight = torch.randn(HEADS, outputs, size, device=device) / size**0.5
        return SimpleNamespace(weight=weight, bias=torch.randn(HEADS, outputs, device=device))

    ones = torch.ones(HEADS, HIDDEN, device=device)
    norm = SimpleNamespace(weight=ones, bias=0 * ones, eps=1e-5)
    first = affine(HIDDEN, FEATURES + ACTIONS + Z)
    return SimpleNamespace(first=first, norm=norm, second=affine(HIDDEN, HIDDEN), last=affine(Z, HIDDEN))


def unfolded(heads: SimpleNamespace, feature: Tensor, action: Tensor, z: Tensor, goal: Tensor) -> Tensor:
    """The same score as it is written in the paper, layer by layer in the weights' dtype."""
    inputs = torch.cat([feature, action, z.expand(len(feature), -1)], dim=-1)
    scores = []
    for k in range(HEADS):
        hidden = functional.linear(inputs, heads.first.weight[k], heads.first.bias[k])
        hidden = functional.layer_norm(hidden, (HIDDEN,), heads.norm.weight[k], heads.norm.bias[k], heads.norm.eps)
        hidden = functional.linear(torch.tanh(hidden), heads.second.weight[k], heads.second.bias[k])
        scores.append(functional.linear(torch.relu(hidden), heads.last.weight[k], heads.last.bias[k]) @ goal)
    return torch.stack(scores).amin(dim=0)


class Timed(NamedTuple):
    """Something to time: `run` makes so many `calls` of `score`."""

    run: Callable[[], object]
    calls: int
    score: Callable[[], Tensor]


def plain(score: Callable[[], Tensor]) -> Timed:
    return Timed(score, 1, score)


def graphed(score: Callable[[], Tensor]) -> Timed:
    return Timed(graph_of(score, IN_A_GRAPH).replay, IN_A_GRAPH, score)


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__ or "", [1, 16, 64, 256, 1024])
    parser.add_argument("--tune", action="store_true", help="time other tilings, too")
    parser.set_defaults(dtype="float32")
    options = parser.parse_args(argv)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    limits = measure_limits(device, dtype)
    heads = make_heads(device)
    z, goal = torch.randn(Z, device=device), torch.randn(Z, device=device)
    folded = fold(heads, z, goal).to(dtype)
    results = []
    for rows in options.rows:
        feature = torch.randn(rows, FEATURES, device=device)
        action = torch.rand(rows, ACTIONS, device=device) * 2 - 1

        def ours(tiling: Tiling | None = None, f: Tensor = feature, a: Tensor = action) -> Tensor:
            return fb_score(f, a, folded, tiling=tiling)

        def reference(f: Tensor = feature, a: Tensor = action) -> Tensor:
            return fb_score_reference(f, a, folded)

        def in_full(f: Tensor = feature, a: Tensor = action) -> Tensor:
            return unfolded(heads, f, a, z, goal)

        timed = {"fb_score": plain(ours), "reference": plain(reference), "not folded, float32": plain(in_full)}
        if device.type == "cuda":
            timed |= {"CUDA graph": graphed(ours), "CUDA graph, reference": graphed(reference)}
        for tiling in TRIALS if options.tune else ():
            name = "{}x{}x{}, splits {}, warps {}, stages {}, {}".format(*tiling)
            timed[name] = (graphed if device.type == "cuda" else plain)(partial(ours, tiling))
        size = sum(value.nbytes for value in folded[:8]) + feature.nbytes + action.nbytes
        flops = 2 * rows * HEADS * (HIDDEN * (FEATURES + ACTIONS) + HIDDEN * HIDDEN + HIDDEN)
        least = limits.milliseconds(size, flops)
        expected = in_full().double()
        for name, (run, calls, score) in timed.items():
            ms = median_ms(run, device, options.seconds) / calls
            error = (score().double() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
            results.append(
                {
                    "variant": name,
                    "rows": rows,
                    "dtype": options.dtype,
                    "ms": ms,
                    "GB/s": size / ms / 1e6,
                    "TFLOP/s": flops / ms / 1e9,
                    "% of limit": 100 * least / ms,
                    "relative error": error.item(),
                }
            )
    report("fb_score", limits, results, options.json)


if __name__ == "__main__":
    main()
