"""Times `laprop` for tensors of one size (150 of them: about the agent's size 12M), beside PyTorch's foreach calls."""

from __future__ import annotations

import torch
from timing import arguments, measure_limits, median_ms, report
from torch import Tensor

from genreward_fast.kernels.laprop import Rates, Segments, laprop, laprop_reference

RATES = Rates()


def by_tensor(gradient: Tensor, p: Tensor, mu: Tensor, nu: Tensor, segments: Segments, *rest: Tensor) -> Tensor:
    """The same as foreach calls over the tensors."""
    rate, correction, copy = rest
    grads, params, mus, nus = (segments.views(value) for value in (gradient.float(), p, mu, nu))
    norms, limits = torch._foreach_norm(grads), torch._foreach_norm(params)
    torch._foreach_clamp_min_(limits, RATES.agc_min)
    torch._foreach_mul_(limits, RATES.agc)
    ratios = torch._foreach_div(norms, limits)
    torch._foreach_clamp_min_(ratios, 1.0)
    torch._foreach_reciprocal_(ratios)
    clipped = torch._foreach_mul(grads, ratios)
    torch._foreach_mul_(nus, RATES.beta2)
    torch._foreach_addcmul_(nus, clipped, clipped, 1 - RATES.beta2)
    scale = torch._foreach_div(nus, correction)
    torch._foreach_sqrt_(scale)
    torch._foreach_add_(scale, RATES.eps)
    torch._foreach_div_(clipped, scale)
    torch._foreach_mul_(mus, RATES.beta1)
    torch._foreach_add_(mus, clipped, alpha=1 - RATES.beta1)
    torch._foreach_add_(params, torch._foreach_mul(mus, rate))
    copy.copy_(p)
    return torch.stack(norms).norm()


def main() -> None:
    parser = arguments(__doc__ or "", [150])
    parser.add_argument("--width", type=int, default=81920, help="elements of a tensor")
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    limits = measure_limits(device, dtype)
    results = []
    for tensors in options.rows:
        segments = Segments.make([options.width] * tensors, device)
        gradient = torch.randn(segments.total, device=device)
        start = [torch.randn_like(gradient), 0.1 * torch.randn_like(gradient), torch.rand_like(gradient)]
        rate, correction = (torch.tensor(value, device=device) for value in (-4e-5, 0.5))

        def run(call, start=start, gradient=gradient, segments=segments, rate=rate, correction=correction):
            state, copy = [value.clone() for value in start], torch.empty_like(gradient, dtype=dtype)
            if call is by_tensor:
                return state, lambda: by_tensor(gradient, *state, segments, rate, correction, copy)
            return state, lambda: call(gradient, *state, segments, rate, correction, RATES, copy)

        wanted, reference = run(laprop_reference)
        reference()
        # Both passes read gradient and parameters; the second also reads the moments, and writes all but the gradient.
        size = segments.total * (9 * 4 + dtype.itemsize)
        for name, call in (("laprop", laprop), ("reference", laprop_reference), ("foreach, by tensor", by_tensor)):
            state, once = run(call)
            once()
            error = max(float((a - b).norm() / b.norm()) for a, b in zip(state, wanted))
            ms = median_ms(run(call)[1], device, options.seconds, flush=True)
            results.append(
                {
                    "variant": name,
                    "shape": f"{tensors}x{options.width}",
                    "dtype": options.dtype,
                    "ms": ms,
                    "GB/s": size / ms / 1e6,
                    "% of limit": 100 * limits.milliseconds(size, 0) / ms,
                    "relative error": error,
                }
            )
    report("laprop", limits, results, options.json)


if __name__ == "__main__":
    main()
