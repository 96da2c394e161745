"""Measures the scan over observed sequences, there or back, beside its plain forms.

The limit of a step is the longer of two times: that of reading all its weights once from memory as fast as copying
does, and that of as many launches as the step has kernels, each waiting for the one before it and doing next to
nothing, in a CUDA graph in the same run. The first is no floor where the cache keeps the weights (50 MB on an H100,
10 MB of weights at size 12M in bfloat16), nor is the second with programmatic dependent launch, which starts a kernel
before the one before it ends.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from timing import arguments, measure_limits, median_ms, report
from torch import Tensor

from genreward_fast.agent import AgentConfig, Draws, RecordedSampler
from genreward_fast.agent.nets import initialize
from genreward_fast.agent.rssm import RSSM, State
from genreward_fast.kernels.rssm_step import StepWeights, observe_step_reference
from genreward_fast.kernels.triton_support import references_only

LAUNCHES, ACTIONS, TOKENS = 5, 4, 1024


def measure(op: str, description: str, backward: bool) -> None:
    """Reads the command line and prints a table: this op first, then the references."""
    parser = arguments(description, [16])
    cuda = torch.cuda.is_available()
    parser.add_argument("--size", default="12M" if cuda else "tiny")
    parser.add_argument("--steps", type=int, default=64 if cuda else 2)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile of one step out")
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    limits = measure_limits(device, dtype)
    results: list[dict[str, Any]] = []
    for rows in options.rows:
        rssm = RSSM(AgentConfig(size=options.size, dtype=options.dtype), ACTIONS, TOKENS).to(device)
        initialize(rssm, torch.Generator(device).manual_seed(0))
        inputs = _inputs(rssm, rows, options.steps, device)
        weights = _weights(rssm)
        used = [getattr(weights, field.name) for field in fields(weights)]
        size = sum(x.nbytes for x in used) - rssm.blocks * rssm.hidden_size * weights.hidden.shape[2] * dtype.itemsize
        launch = _launch_ms(device, options.seconds) if device.type == "cuda" else 0.0
        limit = options.steps * max(limits.milliseconds(size, 0), LAUNCHES * launch)
        if backward:  # and the gradients by the weights are written once
            limit += limits.milliseconds(size, 0)
        expected: Tensor | None = None
        variants = _variants(op, rssm, inputs, options)
        # The first of the table is not what the others are compared with.
        for name in ["reference", *(n for n in variants if n != "reference")]:
            call, found = _prepared(variants[name], rssm, inputs, backward, device)
            result = torch.cat([x.detach().double().flatten() for x in found])
            expected = result if expected is None else expected
            ms = median_ms(call, device, options.seconds)
            results.append(
                {
                    "variant": name,
                    "shape": f"{rows}x{options.steps} {options.size}",
                    "dtype": options.dtype,
                    "ms": ms,
                    "us a step": 1e3 * ms / options.steps,
                    "% of limit": 100 * limit / ms,
                    "relative error": float((result - expected).norm() / expected.norm()),
                }
            )
        results[-len(variants) :] = sorted(results[-len(variants) :], key=lambda r: list(variants).index(r["variant"]))
    report(op, limits, results, options.json)


def _inputs(rssm: RSSM, rows: int, steps: int, device: torch.device) -> dict[str, Tensor]:
    index = torch.randint(0, rssm.classes, (rows, steps, rssm.stoch), device=device)
    return {
        "tokens": torch.randn(rows, steps, TOKENS, device=device).to(rssm.dtype),
        "action": torch.randn(rows, steps, ACTIONS, device=device),
        "reset": torch.rand(rows, steps, device=device) < 0.02,
        "index": index,
    }


def _weights(rssm: RSSM) -> StepWeights:
    from_deter = rssm.posterior.linear.cast("weight", rssm.dtype)[:, : rssm.deter]
    return rssm._step_weights(from_deter)


def _variants(
    op: str, rssm: RSSM, inputs: dict[str, Tensor], options: argparse.Namespace
) -> dict[str, Callable[[], tuple[Tensor, Tensor]]]:
    """Functions without arguments that give deter and logits of all steps."""
    rows = len(inputs["tokens"])
    device = inputs["tokens"].device
    sampler = RecordedSampler(Draws(inputs["index"], inputs["index"], inputs["index"]))

    def observe() -> tuple[Tensor, Tensor]:
        state = rssm.initial(rows, device)
        found = rssm.observe(state, inputs["tokens"], inputs["action"], inputs["reset"], sampler)
        return found.state.deter, found.logit.flatten(2)

    def step_by_step() -> tuple[Tensor, Tensor]:
        fused, rssm._fused = rssm._fused, False
        try:
            return observe()
        finally:
            rssm._fused = fused

    def plain(step: Callable[..., Any]) -> tuple[Tensor, Tensor]:
        weights, linear = _weights(rssm), rssm.posterior.linear
        state: State = rssm.initial(rows, device)
        deter, stoch = state.deter, state.stoch.flatten(1)
        from_tokens = linear.cast("weight", rssm.dtype)[:, rssm.deter :]
        evidence = inputs["tokens"] @ from_tokens.t() + linear.cast("bias", rssm.dtype)
        action = inputs["action"].masked_fill(inputs["reset"].unsqueeze(-1), 0).to(rssm.dtype)
        share = rssm._embed_action(rssm._core_weights()[1], action)
        made = []
        for t in range(options.steps):
            given = (inputs["reset"][:, t], share[:, t], evidence[:, t], None, inputs["index"][:, t])
            values = step(weights, rssm.unimix, deter, stoch, *given)
            deter, stoch = values.deter, values.stoch
            made.append((deter, values.logits))
        deters, logits = zip(*made)
        return torch.stack(deters, 1), torch.stack(logits, 1)

    def reference() -> tuple[Tensor, Tensor]:
        with references_only():
            return plain(observe_step_reference)

    variants = {op: observe, "reference": reference, "library products": step_by_step}
    if device.type == "cuda" and not options.no_compile:
        compiled = torch.compile(observe_step_reference, dynamic=False)
        variants["reference compiled"] = lambda: plain(compiled)
    return variants


def _prepared(
    scan: Callable[[], tuple[Tensor, Tensor]],
    rssm: RSSM,
    inputs: dict[str, Tensor],
    backward: bool,
    device: torch.device,
) -> tuple[Callable[[], Any], list[Tensor]]:
    """What to time, as one CUDA graph where there is CUDA, and its results."""
    leaves = [p for name, p in rssm.named_parameters() if not name.startswith("prior")]

    def forward() -> list[Tensor]:
        with torch.no_grad():
            return list(scan())

    def recorded() -> Callable[[], list[Tensor]]:
        outputs = scan()
        grads = [torch.ones_like(x) for x in outputs]
        return lambda: list(torch.autograd.grad(outputs, leaves, grads, retain_graph=True))

    if device.type != "cuda":
        call = recorded() if backward else forward
        return call, call()
    # A gradient runs on the stream of what it is the gradient of, so that all of it must happen on the graph's.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call = recorded() if backward else forward
        for _ in range(2):
            call()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            found = call()
    torch.cuda.current_stream().wait_stream(stream)
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay, found


def _launch_ms(device: torch.device, seconds: float, count: int = 320) -> float:
    """One of many dependent launches that do next to nothing, in a CUDA graph."""
    x = torch.zeros(1, device=device)
    graph = torch.cuda.CUDAGraph()
    x.add_(1)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(count):
            x.add_(1)
    return median_ms(graph.replay, device, seconds) / count
