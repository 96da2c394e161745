"""Times a guided step of video generation, and decoding, with initial weights: diffusers eagerly, and our options.

    python benchmarks/goals/bench_generate.py --preset paper --json benchmarks/results/generate_h100.json

The guided step is one call of the transformer with two examples per candidate. Beside each time stands how far the
step's output is from that of the eager one, which the options must not change but for rounding.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genreward_fast.bench.timing import measure_limits, median_ms, report
from genreward_fast.encoders.presets import default_dtype
from genreward_fast.goals.finetune.conditioning import Conditioning
from genreward_fast.goals.flops import transformer_flops
from genreward_fast.goals.generation import ATTENTION, GenerationConfig, VideoGenerator, attention, video_size
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


@torch.no_grad()
def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    device = torch.device(options.device)
    dtype = default_dtype(device)
    limits = measure_limits(device, dtype)
    pipeline = build_pipeline(options.preset, device=device, dtype=dtype)
    config = GenerationConfig(batch=options.batch)
    inputs = step_inputs(pipeline, config, device, dtype)
    frames, _, height, width = inputs["hidden_states"].shape[1:]
    flops = 2 * options.batch * sum(transformer_flops(pipeline.transformer.config, frames, height, width))
    results: list[dict[str, Any]] = []
    eager: Tensor | None = None

    def measure(name: str, attention_name: str) -> Tensor:
        peak_gigabytes(device)
        with attention(attention_name):
            output = pipeline.transformer(**inputs)[0]
            milliseconds = median_ms(lambda: pipeline.transformer(**inputs), device, options.seconds)
        tflops = flops / milliseconds / 1e9
        results.append(
            {
                "what": name,
                "ms": milliseconds,
                "TFLOP/s": tflops,
                "% of limit": 100 * tflops / limits.tflops,
                "peak GiB": peak_gigabytes(device),
                "difference": 0.0 if eager is None else relative_rms(output, eager),
            }
        )
        return output

    eager = measure("diffusers, eager", "auto")
    for name in options.attention:
        measure(f"attention {name}", name)
    if not options.skip_compile:
        VideoGenerator(pipeline, GenerationConfig(batch=options.batch, compile=True))
        for name in ["auto", *options.attention]:
            measure(f"compiled, attention {name}", name)
    results.append(measure_decode(pipeline, frames, height, width, device, dtype, options.seconds))
    report(f"guided step, {options.preset}, batch {options.batch}, random weights", limits, results, options.json)
    return results


def measure_decode(
    pipeline: Any, frames: int, height: int, width: int, device: torch.device, dtype: torch.dtype, seconds: float
) -> dict[str, Any]:
    """The autoencoder's decoder, once a video."""
    latents = torch.randn(1, frames, pipeline.vae.config.latent_channels, height, width, device=device, dtype=dtype)
    milliseconds = median_ms(lambda: pipeline.decode_latents(latents), device, seconds)
    row = dict.fromkeys(("TFLOP/s", "% of limit", "difference"), "")
    return row | {"what": "decoding, diffusers", "ms": milliseconds, "peak GiB": peak_gigabytes(device)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("paper", "tiny"), default="paper")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=1, help="candidates at once")
    parser.add_argument("--attention", choices=sorted(set(ATTENTION) - {"auto"}), nargs="*", default=[])
    parser.add_argument("--skip-compile", action="store_true")
    parser.add_argument("--seconds", type=float, default=10, help="of measuring, per number")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
