"""Times a step of fine-tuning with initial weights and random clips: time, memory, percent of the device's limit.

python benchmarks/goals/bench_finetune.py --preset paper --lora-rank 128
accelerate launch --config_file benchmarks/goals/fsdp.yaml --num_processes 2 benchmarks/goals/bench_finetune.py --full

The weights are drawn on the GPU. Beside the peak stands what weights, gradients, moments and average need without the
activations; if that is more than the GPU has, nothing is begun.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from genreward_fast.bench.timing import measure_limits, report
from genreward_fast.errors import RunFailed
from genreward_fast.goals.finetune.conditioning import Conditioning
from genreward_fast.goals.finetune.config import FinetuneConfig
from genreward_fast.goals.finetune.encoded import EncodedClip
from genreward_fast.goals.finetune.updates import Updates
from genreward_fast.goals.flops import training_flops, transformer_flops
from genreward_fast.goals.lora import TARGETS
from genreward_fast.goals.video_model import explaining_out_of_memory
from genreward_fast.goals.video_model_configs import TRANSFORMER, build_pipeline


class RandomClips:
    """One clip of random numbers, of the model's own size, over and over."""

    fps, identity = 8.0, "random"

    def __init__(self, preset: str, channels: int, temporal: int) -> None:
        config = TRANSFORMER[preset]
        frames = (config["sample_frames"] - 1) // temporal + 1
        side = config["sample_height"], config["sample_width"]
        self.empty_text = torch.randn(config.get("max_text_seq_length", 226), config["text_embed_dim"])
        self._clip = EncodedClip(
            video=torch.randn(2 * channels, frames, *side),
            first_frames=torch.randn(1, 2 * channels, *side),
            texts=self.empty_text[None],
            frame=torch.zeros(8 * side[0], 8 * side[1], 3, dtype=torch.uint8),
        )

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> EncodedClip:
        return self._clip

    @property
    def video(self) -> Tensor:
        return self._clip.video


def state_gibibytes(transformer: Any, config: FinetuneConfig, accelerator: Accelerator) -> float:
    """What a process holds from step to step: frozen weights in the dtype that is computed in; for each trained one
    itself, its gradient, two moments and its average, float32. With FSDP it is its share of that.
    """
    weights = sum(parameter.numel() for parameter in transformer.parameters())
    each = 20 if config.ema_decay else 16
    if config.lora_rank is None:
        split = accelerator.num_processes if accelerator.distributed_type == DistributedType.FSDP else 1
        return each * weights / split / 2**30
    layers = [module for name, module in transformer.named_modules() if name.endswith(tuple(TARGETS))]
    adapters = sum(config.lora_rank * (layer.in_features + layer.out_features) for layer in layers)
    return (weights * getattr(torch, config.dtype).itemsize + each * adapters) / 2**30


def run(options: argparse.Namespace) -> dict[str, Any]:
    cpu = options.device == "cpu"
    config = FinetuneConfig(
        lora_rank=None if options.full else options.lora_rank,
        batch_size=options.batch_size,
        dtype="float32" if cpu else "bfloat16",
        gradient_checkpointing=not options.no_gradient_checkpointing,
    )
    accelerator = Accelerator(mixed_precision="no" if cpu else "bf16", cpu=cpu)
    device, dtype = accelerator.device, getattr(torch, config.dtype)
    limits = measure_limits(device, dtype)
    if not cpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    # Whole on each GPU at first, 22 GB at 5B: accelerate then leaves it the part that it is to hold.
    pipeline = build_pipeline(options.preset, device=device, dtype=torch.float32 if options.full else dtype)
    state = state_gibibytes(pipeline.transformer, config, accelerator)
    if not cpu:
        total = torch.cuda.get_device_properties(device).total_memory / 2**30
        if state > total:
            raise RunFailed(
                f"{state:.0f} GiB of weights, gradients, moments and average do not fit the GPU's {total:.0f}; "
                "use more GPUs with fsdp.yaml, or --lora-rank"
            )
    conditioning = Conditioning(pipeline.transformer.config, pipeline.vae.config)
    clips = RandomClips(options.preset, conditioning.channels, pipeline.vae_scale_factor_temporal)
    frames, _, height, width = conditioning.video_latents(clips.video[None, : conditioning.channels]).shape[1:]
    times: list[float] = []
    with explaining_out_of_memory("in a step", "use more GPUs with fsdp.yaml, or --lora-rank instead of --full"):
        updates = Updates(pipeline.transformer, pipeline.scheduler, conditioning, config, accelerator)
        for step in range(options.warmup + options.steps):
            start = time.perf_counter()
            loss = updates.gradients(clips, step, 1)
            updates.apply(step)
            float(loss)
            took = time.perf_counter() - start
            accelerator.print(f"step {step}: {1e3 * took:.0f} ms", flush=True)
            if step >= options.warmup:
                times.append(took)
    seconds = sorted(times)[len(times) // 2]
    linear, attention = transformer_flops(pipeline.transformer.config, frames, height, width)
    flops = options.batch_size * training_flops(linear, attention, all_weights=options.full)
    tflops = flops / seconds / 1e12
    result = {
        "what": "all weights" if options.full else f"LoRA of rank {options.lora_rank}",
        "processes": accelerator.num_processes,
        "batch": options.batch_size,
        "ms": 1e3 * seconds,
        "samples/s": options.batch_size * accelerator.num_processes / seconds,
        "TFLOP/s": tflops,
        "% of limit": 100 * tflops / limits.tflops,
        "weights to average GiB": state,
        "peak GiB": 0.0 if cpu else torch.cuda.max_memory_allocated() / 2**30,
    }
    if accelerator.is_main_process:
        report(f"fine-tuning step, {options.preset}, random weights", limits, [result], options.json)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("paper", "tiny"), default="paper")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--lora-rank", type=int, default=128)
    parser.add_argument("--full", action="store_true", help="train all weights instead of adapters")
    parser.add_argument("--no-gradient-checkpointing", action="store_true")
    parser.add_argument("--batch-size", type=int, default=1, help="per process")
    parser.add_argument("--warmup", type=int, default=2, help="steps before measuring")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    try:
        run(parser.parse_args())
    except RunFailed as error:
        sys.exit(f"bench_finetune: {error}")


if __name__ == "__main__":
    main()
