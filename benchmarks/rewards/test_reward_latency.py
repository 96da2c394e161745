"""Latency of the reward, ours and the released code's way, through pytest-benchmark.

usage: pytest benchmarks/rewards [--preset paper --weights random] [--envs 1 4 16 64]   (extra `bench`)

The same calls as `genreward bench --what reward`, for those who compare runs with pytest-benchmark.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from genreward_fast.bench.reward import our_calls, released_calls
from genreward_fast.bench.reward_subjects import Subjects

WAYS = {"ours": our_calls, "released": released_calls}


@pytest.mark.parametrize("unit", ["step", "window"])
@pytest.mark.parametrize("way", WAYS)
def test_latency(benchmark: Any, subjects: Subjects, way: str, unit: str, envs: int) -> None:
    call = WAYS[way](subjects, envs)[unit, "all"]
    benchmark.extra_info |= {"note": subjects.note, "envs": envs}

    def waited_for() -> None:
        call()
        if subjects.device.type == "cuda":
            torch.cuda.synchronize(subjects.device)

    benchmark.group = f"{unit}, {envs} environments"
    benchmark(waited_for)
