"""Times `fb_score` at the paper's sizes, beside eager PyTorch with and without folding."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import functional

from genreward_fast.bench.timing import arguments, measure_limits, median_ms, report
from genreward_fast.kernels.fb_score import fb_score, fb_score_reference, fold

FEATURES, ACTIONS, Z, HIDDEN, HEADS = 384, 4, 64, 512, 2


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


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__ or "", [1, 16, 256, 1024])
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
        calls = {
            "fb_score": lambda f=feature, a=action: fb_score(f, a, folded),
            "reference": lambda f=feature, a=action: fb_score_reference(f, a, folded),
            "not folded, float32": lambda f=feature, a=action: unfolded(heads, f, a, z, goal),
        }
        size = sum(value.nbytes for value in folded[:8]) + feature.nbytes + action.nbytes
        flops = 2 * rows * HEADS * (HIDDEN * (FEATURES + ACTIONS) + HIDDEN * HIDDEN + HIDDEN)
        least = limits.milliseconds(size, flops)
        expected = calls["not folded, float32"]().double()
        for name, call in calls.items():
            ms = median_ms(call, device, options.seconds)
            error = (call().double() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
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
