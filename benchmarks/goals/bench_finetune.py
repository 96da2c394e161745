"""Times a step of fine-tuning with initial weights and random clips: time, memory, percent of the device's limit.

python benchmarks/goals/bench_finetune.py --preset paper --lora-rank 128
accelerate launch --config_file fsdp.yaml benchmarks/goals/bench_finetune.py --preset paper --full
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from genreward_fast.bench.timing import measure_limits, report
from genreward_fast.goals.finetune.conditioning import Conditioning
from genreward_fast.goals.finetune.config import FinetuneConfig
from genreward_fast.goals.finetune.encoded import EncodedClip
from genreward_fast.goals.finetune.updates import Updates
from genreward_fast.goals.flops import training_flops, transformer_flops
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
    # All weights are built where there is room for them; accelerate moves to each GPU what it is to hold.
    built = "cpu" if options.full else device
    pipeline = build_pipeline(options.preset, device=built, dtype=torch.float32 if options.full else dtype)
    conditioning = Conditioning(pipeline.transformer.config, pipeline.vae.config)
    clips = RandomClips(options.preset, conditioning.channels, pipeline.vae_scale_factor_temporal)
    frames, _, height, width = conditioning.video_latents(clips.video[None, : conditioning.channels]).shape[1:]
    updates = Updates(pipeline.transformer, pipeline.scheduler, conditioning, config, accelerator)
    times: list[float] = []
    for step in range(options.warmup + options.steps):
        start = time.perf_counter()
        loss = updates.gradients(clips, step, 1)
        updates.apply(step)
        float(loss)
        if step >= options.warmup:
            times.append(time.perf_counter() - start)
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
    run(parser.parse_args())


if __name__ == "__main__":
    main()
