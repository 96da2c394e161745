"""Times guided steps of video generation, whole samplings, and decoding, with initial weights.

    python benchmarks/goals/bench_generate.py --preset paper --json benchmarks/results/generate_h100.json

A guided step is one call of the transformer with two examples per candidate. Beside each time stands how far the step's
output is from that of eager diffusers, which must be rounding alone; and for the samplings that approximate, how far
their final latents are from the exact ones with the same noise. Initial weights do not behave as trained ones: what
first-block skips with them, and what either changes, says nothing of trained ones; what attention-broadcast saves does.

Each row is printed and written as soon as it is measured; none is begun after --limit seconds.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genreward_fast.bench.timing import Limits, call_times, measure_limits, report
from genreward_fast.encoders.presets import default_dtype
from genreward_fast.goals.attention import ATTENTION, attention
from genreward_fast.goals.finetune.conditioning import Conditioning
from genreward_fast.goals.flops import transformer_flops
from genreward_fast.goals.fused_blocks import fuse_blocks
from genreward_fast.goals.generation import GenerationConfig, VideoGenerator, video_size
from genreward_fast.goals.video_model_configs import build_pipeline


def step_inputs(pipeline: Any, config: GenerationConfig, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The transformer's arguments in a guided step, with random numbers."""
    model, size = pipeline.transformer.config, video_size(pipeline, config)
    conditioning = Conditioning(model, pipeline.vae.config)
    spatial, temporal = pipeline.vae_scale_factor_spatial, pipeline.vae_scale_factor_temporal
    shape = ((size.frames - 1) // temporal + 1, size.height // spatial, size.width // spatial)
    batch = 2 * config.batch
    video = torch.randn(batch, conditioning.channels, *shape, device=device)
    latents = conditioning.video_latents(video)
    image = conditioning.image_latents(video[:, :, 0], latents.shape[1])
    text = torch.randn(batch, model.max_text_seq_length, model.text_embed_dim, device=device)
    timesteps = torch.full((batch,), 500, device=device)
    return conditioning.model_inputs(latents, image, text, timesteps, dtype)


def peak_gigabytes(device: torch.device) -> float:
    """Of the device's memory since the last call; 0 on a CPU."""
    if device.type != "cuda":
        return 0.0
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def relative_rms(value: Tensor, reference: Tensor) -> float:
    return float((value.float() - reference.float()).norm() / reference.float().norm())


class Rows:
    """The results so far, in print and in the file; a row that fails says why, and the next one is tried."""

    def __init__(self, title: str, limits: Limits, path: Path | None, seconds: float) -> None:
        self.title, self.limits, self.path = title, limits, path
        self.end = time.perf_counter() + seconds
        self.results: list[dict[str, Any]] = []

    def measure(self, what: str, function: Callable[[], dict[str, Any]]) -> None:
        """Adds what the function returns."""
        if time.perf_counter() > self.end:
            print(f"{what}: not measured, --limit is over", flush=True)
            return
        started = time.perf_counter()
        columns = dict.fromkeys(("ms", "TFLOP/s", "% of limit", "peak GiB", "difference", "PSNR dB", "error"), "")
        try:
            found = function()
        except RuntimeError as error:  # a backend that this GPU lacks, or memory
            found = {"error": str(error).strip().splitlines()[0]}
        took = time.perf_counter() - started
        self.results.append({"what": what} | columns | found | {"in all s": took})
        report(self.title, self.limits, self.results, self.path)


@torch.no_grad()
def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    device = torch.device(options.device)
    dtype = default_dtype(device)
    limits = measure_limits(device, dtype)
    pipeline = build_pipeline(options.preset, device=device, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    transformer, config = pipeline.transformer, GenerationConfig(batch=options.batch)
    inputs = step_inputs(pipeline, config, device, dtype)
    frames, _, height, width = inputs["hidden_states"].shape[1:]
    products, attending = transformer_flops(transformer.config, frames, height, width)
    flops = 2 * options.batch * (products + attending)
    title = f"guided step, {options.preset}, batch {options.batch}, random weights"
    print(f"a guided step: {2 * options.batch * products / 1e12:.4g} TFLOP of linear layers, "
          f"{2 * options.batch * attending / 1e12:.4g} of attention")  # fmt: skip
    rows = Rows(title, limits, options.json, options.limit)
    outputs: list[Tensor] = []

    def step(attention_name: str) -> dict[str, Any]:
        peak_gigabytes(device)
        with attention(attention_name):
            outputs.append(transformer(**inputs)[0])
            milliseconds = timed(lambda: transformer(**inputs), device, options.seconds)
        tflops = flops / milliseconds / 1e9
        return {
            "ms": milliseconds,
            "TFLOP/s": tflops,
            "% of limit": 100 * tflops / limits.tflops,
            "peak GiB": peak_gigabytes(device),
            "difference": relative_rms(outputs[-1], outputs[0]),
        }

    rows.measure("diffusers, eager", lambda: step("auto"))
    chosen = options.attention
    rows.measure(f"diffusers, eager, attention {chosen}", lambda: step(chosen))
    if not options.skip_compile:
        # Before anything else is compiled: a compiled function keeps the attention that it began with.
        for block in transformer.transformer_blocks:
            block.compile(fullgraph=True, dynamic=False)
        rows.measure(f"diffusers, blocks compiled, attention {chosen}", lambda: step(chosen))
        for block in transformer.transformer_blocks:
            block._compiled_call_impl = None
    fuse_blocks(transformer, chosen, compiled=not options.skip_compile)
    rows.measure(f"ours, attention {chosen}", lambda: step(chosen))
    measure_samplings(pipeline, replace(config, steps=options.steps, attention=chosen), rows, options.threshold)
    rows.measure("decoding, diffusers", lambda: measure_decode(pipeline, frames, height, width, device, dtype))
    return rows.results


def timed(function: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Median milliseconds of a long call that has been made once before."""
    times = sorted(call_times(function, device, seconds, warmup=0, least=2))
    return times[len(times) // 2]


def measure_samplings(pipeline: Any, config: GenerationConfig, rows: Rows, threshold: float) -> None:
    """A sampling of all steps, exactly and with each approximation, of one candidate with the same noise."""
    transformer = pipeline.transformer
    device = transformer.device
    model = transformer.config
    text, empty = torch.randn(2, model.max_text_seq_length, model.text_embed_dim)
    size = video_size(pipeline, config)
    image = torch.randint(0, 256, (size.height, size.width, 3), dtype=torch.uint8)
    exact: list[Tensor] = []

    def sample(approximation: str) -> dict[str, Any]:
        peak_gigabytes(device)
        generator = VideoGenerator(pipeline, replace(config, approximate=approximation, threshold=threshold))
        started: list[float] = []
        handle = transformer.register_forward_pre_hook(lambda *_: started.append(now(device)))
        try:
            latents = generator.latents(image, text, empty, seed=0)
            finished = now(device)
        finally:
            handle.remove()
            if transformer.is_cache_enabled:
                transformer.disable_cache()
        found = {"ms": 1e3 * (finished - started[0]) / len(started), "peak GiB": peak_gigabytes(device)}
        if not exact:
            exact.append(latents)
            return found
        return found | {"difference": relative_rms(latents, exact[0]), "PSNR dB": psnr(latents, exact[0])}

    for approximation in ("none", "attention-broadcast", "first-block"):
        setting = f", threshold {threshold:g}" if approximation == "first-block" else ""
        name = "exactly" if approximation == "none" else f"{approximation}{setting}"
        rows.measure(f"ours, mean of {config.steps} steps, {name}", lambda kind=approximation: sample(kind))


def now(device: torch.device) -> float:
    """Seconds, when the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def psnr(value: Tensor, reference: Tensor) -> float | str:
    """Decibels, of the reference's range; empty if both are the same."""
    error = float((value.float() - reference.float()).square().mean())
    return 10 * math.log10(float(reference.max() - reference.min()) ** 2 / error) if error else ""


def measure_decode(
    pipeline: Any, frames: int, height: int, width: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """The autoencoder's decoder, once a video."""
    peak_gigabytes(device)
    latents = torch.randn(1, frames, pipeline.vae.config.latent_channels, height, width, device=device, dtype=dtype)
    pipeline.decode_latents(latents)
    milliseconds = timed(lambda: pipeline.decode_latents(latents), device, 0)
    return {"ms": milliseconds, "peak GiB": peak_gigabytes(device)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("paper", "tiny"), default="paper")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=1, help="candidates at once, in a step")
    parser.add_argument("--attention", choices=sorted(ATTENTION), help="default: cudnn on a GPU, else auto")
    parser.add_argument("--skip-compile", action="store_true")
    parser.add_argument("--steps", type=int, default=20, help="of a sampling")
    parser.add_argument("--threshold", type=float, default=0.05, help="of first-block")
    parser.add_argument("--seconds", type=float, default=5, help="of measuring a step, per row")
    parser.add_argument("--limit", type=float, default=200, help="seconds after which no row is begun")
    parser.add_argument("--json", type=Path, help="write the results to this file, after each row")
    options = parser.parse_args()
    options.attention = options.attention or ("auto" if options.device == "cpu" else "cudnn")
    run(options)


if __name__ == "__main__":
    main()
