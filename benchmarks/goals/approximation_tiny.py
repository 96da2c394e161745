"""How far approximated samplings of the shipped image-to-video model are from the exact ones with the same noise.

    python benchmarks/goals/approximation_tiny.py --json benchmarks/results/approximation_tiny.json

First frames are of the paper's five tasks. These are trained weights, but of a small model: at 5B it may be otherwise.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genreward_fast.envs.tasks import describe
from genreward_fast.files import write_json
from genreward_fast.goals.generate import load_generator
from genreward_fast.goals.generated_goal import CAMERA, RENDERING, SAMPLER, first_frame
from genreward_fast.goals.generation import GenerationConfig

TASKS = ("pick-place-v3", "pick-out-of-hole-v3", "bin-picking-v3", "disassemble-v3", "shelf-place-v3")
WAYS = (("none", 0.0), ("attention-broadcast", 0.0), ("first-block", 0.05), ("first-block", 0.2))


def sample(config: GenerationConfig, task: str, seed: int) -> tuple[Tensor, int]:
    """(T, H, W, 3) uint8, and how many attentions were computed for it."""
    generator, (text, empty) = load_generator(describe(task), "tiny", None, None, config, torch.device("cpu"))
    generator.pipeline.set_progress_bar_config(disable=True)
    computed: list[None] = []
    for block in generator.pipeline.transformer.transformer_blocks:
        block.attn1.to_out[0].register_forward_hook(lambda *_: computed.append(None))
    ((_, video),) = generator.generate(first_frame(task, seed, generator.size.height), text, empty, seed)
    return video, len(computed)


def decibels(videos: Tensor, exact: Tensor) -> float:
    """PSNR of uint8 pixels."""
    return 10 * math.log10(255**2 / max(float((videos.float() - exact.float()).square().mean()), 1e-12))


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    config = replace(SAMPLER, steps=options.steps)
    exact: Tensor | None = None
    computed_exactly, results = 0, []
    for name, threshold in WAYS:
        made = [
            sample(replace(config, approximate=name, threshold=threshold), task, seed)
            for task in TASKS
            for seed in range(options.seeds)
        ]
        videos, computed = torch.stack([video for video, _ in made]), sum(count for _, count in made)
        if exact is None:
            exact, computed_exactly = videos, computed
            continue
        moved = float((exact[:, -1].float() - exact[:, 0].float()).norm())
        row = {
            "approximation": name,
            "threshold": threshold if name == "first-block" else "",
            "attentions computed, %": 100 * computed / computed_exactly,
            "relative RMS": float((videos.float() - exact.float()).norm() / exact.float().norm()),
            "PSNR dB": decibels(videos, exact),
            "last frame, PSNR dB": decibels(videos[:, -1], exact[:, -1]),
            "last frame's change / motion": float((videos[:, -1].float() - exact[:, -1].float()).norm()) / moved,
        }
        results.append(row)
        print(row, flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50, help="of denoising")
    parser.add_argument("--seeds", type=int, default=2, help="starts of each task")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    results = run(options)
    if options.json:
        said = {"tasks": TASKS, "seeds": options.seeds, "steps": options.steps, "guidance": SAMPLER.guidance}
        view = {"camera": CAMERA, "rendering": RENDERING}
        write_json(options.json, said | view | {"torch": torch.__version__, "results": results})


if __name__ == "__main__":
    main()
