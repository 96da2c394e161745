"""Times one update of the forward-backward representation at the paper's sizes, beside the released code's way."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch

from genreward_fast.bench.fb import ACTIONS, FEATURES
from genreward_fast.bench.released_update import ReleasedUpdate
from genreward_fast.bench.timing import arguments, measure_limits, median_ms, report
from genreward_fast.kernels.precision import exact_products, tf32_products
from genreward_fast.rewards.config import FBConfig
from genreward_fast.rewards.fb import ForwardBackward
from genreward_fast.types import Batch


def make_pairs(rows: int, device: torch.device) -> Batch:
    """Random pairs of rows in the middle of an episode."""
    flags = torch.zeros(rows, 2, dtype=torch.bool, device=device)
    return Batch(
        action=torch.rand(rows, 2, ACTIONS, device=device) * 2 - 1,
        reward=torch.zeros(rows, 2, device=device),
        is_first=flags,
        is_last=flags,
        is_terminal=flags,
        index=torch.arange(2 * rows, device=device).view(rows, 2),
        feature=torch.randn(rows, 2, FEATURES, device=device),
    )


def product_flops(config: FBConfig, rows: int) -> int:
    """Operations of the networks' products in one update.

    F and B of the target, and B of z's frames, go forward alone; F and B go forward and back, but no gradient goes
    to their inputs.
    """
    inside = config.hidden * (config.hidden + config.z_dim)
    forward = config.heads * ((FEATURES + ACTIONS + config.z_dim) * config.hidden + inside)
    backward = FEATURES * config.hidden + inside
    gradients = forward + backward + (config.heads + 1) * inside
    return 2 * rows * (2 * forward + 3 * backward + gradients)


def calls(config: FBConfig, rows: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """One update in each way, all from the same weights; on CUDA ours also as a CUDA graph."""
    goal, batch = torch.randn(FEATURES, device=device), make_pairs(rows, device)
    plain = ForwardBackward(config, goal, ACTIONS, device, capture=False)
    released = ReleasedUpdate(plain.forward_net, plain.backward_net, config)

    def released_update() -> object:
        with exact_products():
            return released.update(batch)

    ways: dict[str, Callable[[], object]] = {}
    if device.type == "cuda":
        captured = ForwardBackward(config, goal, ACTIONS, device)
        ways["CUDA graph"] = lambda: captured.update(batch)
    return ways | {"launched one by one": lambda: plain.update(batch), "released code's way": released_update}


def main(argv: list[str] | None = None) -> None:
    config = FBConfig()
    parser = arguments(__doc__ or "", [config.batch])
    parser.set_defaults(dtype="float32")
    options = parser.parse_args(argv)
    if options.dtype != "float32":
        parser.error("FB learns in float32 alone")
    if min(options.rows) < 2:
        parser.error("--rows must be at least 2: the losses compare different rows")
    device = torch.device(options.device)
    cuda = device.type == "cuda"
    with tf32_products() if cuda else nullcontext():
        limits = measure_limits(device, torch.float32)
    results = []
    for rows in options.rows:
        flops = product_flops(config, rows)
        for name, call in calls(config, rows, device).items():
            ms = median_ms(call, device, options.seconds)
            results.append(
                {
                    "variant": name,
                    "rows": rows,
                    "dtype": options.dtype,
                    "products": "tf32" if cuda and not name.startswith("released") else "float32",
                    "ms": ms,
                    "TFLOP/s": flops / ms / 1e9,
                    "% of limit": 100 * limits.milliseconds(0, flops) / ms,
                }
            )
    report("fb_update", limits, results, options.json)


if __name__ == "__main__":
    main()
