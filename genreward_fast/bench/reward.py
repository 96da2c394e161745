"""Latency of the generated reward per environment step and per window, beside the released code's way (`released.py`).

A step is what each new frame costs: its feature. A window is what one that closes costs: both levels. Times are wall
times up to a result that is there, for all environments together. Both get the same weights and the same frames. The
rewards of other papers that are fitted before (`fitted_rewards.py`) stand beside them, with their own, shorter windows;
the others (`reward_baselines.py`) where they are asked for.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genreward_fast.bench.fitted_rewards import calls_of, fitted_rewards
from genreward_fast.bench.reward_baselines import baseline, baseline_calls
from genreward_fast.bench.reward_subjects import ACTIONS, Subjects
from genreward_fast.bench.timing import device_name, table
from genreward_fast.encoders.presets import RANDOM, EncoderConfig
from genreward_fast.files import write_json
from genreward_fast.kernels.latent_cosine import latent_cosine
from genreward_fast.rewards.base import total

DRAWS = 8  # of the released code's random reward
ENVS = (1, 4, 16, 64)


@dataclass(frozen=True)
class Request:
    """What is measured.

    Attributes:
        encoders: the preset, and where its weights come from.
        device: of everything.
        envs: numbers of environments.
        seconds: of measuring, per number; at least three calls.
        rendering: whether the cost of rendering both ways is measured, too, with the real environment.
        baselines: rewards of other papers that are timed, too, with random weights.
    """

    encoders: EncoderConfig
    device: str = "cpu"
    envs: tuple[int, ...] = ENVS
    seconds: float = 2.0
    rendering: bool = True
    baselines: tuple[str, ...] = ()


def our_calls(subjects: Subjects, count: int) -> dict[tuple[str, str], Callable[[], Any]]:
    """(unit, part) -> what ours does for `count` environments."""
    reward, video, fb = subjects.ours, subjects.ours.video_level, subjects.ours.frame_level
    frames = subjects.noise(count, subjects.sizes[0])
    if subjects.device.type == "cuda":
        frames = frames.pin_memory()
    window = subjects.window(count)
    assert window.clip is not None
    assert window.features is not None
    clip, features, action = window.clip, window.features.flatten(0, 1), window.action.flatten(0, 1)
    latent = video.encoder(clip)
    return {
        ("step", "all"): lambda: reward.features(frames.to(subjects.device, non_blocking=True)),
        ("window", "all"): lambda: total(reward.parts(window)),
        ("window", "clip encode"): lambda: video.encoder(clip),
        ("window", "cosine"): lambda: latent_cosine(latent, video.goal),
        ("window", "FB score"): lambda: fb.score(features, action),
    }


def released_calls(subjects: Subjects, count: int) -> dict[tuple[str, str], Callable[[], Any]]:
    """(unit, part) -> what the released code does for `count` environments, one after the other."""
    rewards = subjects.released(count)
    frames = subjects.noise(count, subjects.sizes[1]).numpy()
    clips = subjects.noise(count, subjects.config.clip_frames, subjects.sizes[1]).numpy()
    action = np.zeros(ACTIONS, np.float32)

    def video() -> list[float]:
        return [reward.video(clip) for reward, clip in zip(rewards, clips)]

    def frame() -> list[float]:
        return [reward.frame(clip[-1], action) for reward, clip in zip(rewards, clips)]

    return {
        ("step", "all"): lambda: [reward.feature(frame) for reward, frame in zip(rewards, frames)],
        ("window", "all"): lambda: (video(), frame()),
        ("window", "video level"): video,
        ("window", "frame level"): frame,
    }


def wall_times(function: Callable[[], Any], device: torch.device, seconds: float) -> list[float]:
    """Milliseconds from each call to its result, for as many calls as fit into `seconds` (3 at least), warmed up."""
    times: list[float] = []
    end = float("inf")
    while len(times) < 4 or time.perf_counter() < end:
        begin = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1e3 * (time.perf_counter() - begin))
        if len(times) == 1:
            end = time.perf_counter() + seconds
    return times[1:]


def agreement(subjects: Subjects) -> list[dict[str, Any]]:
    """What both say of the same frames, and where they differ by intent."""
    reward, (released,) = subjects.ours, subjects.released(1)
    window = subjects.window(1)
    assert window.clip is not None
    clip = window.clip[0].cpu().numpy()
    action = window.action[0, -1]
    theirs, ours = released.feature(clip[-1]), reward.features(window.clip[0, -1:])
    frame = reward.frame_level.score(ours, action[None]).item()
    mean = reward.video_level.score(window.clip).item()
    drawn = [released.video(clip) for _ in range(DRAWS)]
    return [
        {
            "value": "feature",
            "ours": ours.square().mean().sqrt().item(),
            "released": theirs.square().mean().sqrt().item(),
            "difference": (ours - theirs).square().mean().sqrt().item(),
            "why": "RMS; Pillow rounds resized pixels to bytes, ours does not",
        },
        _compared("r_video of means", mean, released.video(clip, sample=False), "precision and the VAE's algorithm"),
        _compared("r_video as released", mean, float(np.mean(drawn)), "the released latents are drawn at random"),
        {
            "value": "r_video, between draws",
            "ours": 0.0,
            "released": float(np.std(drawn)),
            "difference": float(np.std(drawn)),
            "why": f"deviation over {DRAWS} rewards of one window; ours is always the same",
        },
        _compared("raw r_FB", frame, released.frame(clip[-1], action.cpu().numpy()), "the features' difference"),
    ]


def _compared(value: str, ours: float, released: float, why: str) -> dict[str, Any]:
    return {"value": value, "ours": ours, "released": released, "difference": abs(ours - released), "why": why}


def rendering(subjects: Subjects) -> dict[str, Any]:
    """Milliseconds of rendering an environment step: ours shows clip frames where a window needs them only."""
    from genreward_fast.bench.env import step_parts

    feature, clip = subjects.sizes
    renderer, parts = step_parts("pick-place", "fast", 20, subjects.sizes)
    one = {size: parts[f"draw {size}"] + parts[f"read back {size}"] for size in subjects.sizes}
    share = subjects.config.clip_frames / subjects.config.window
    return {
        "renderer": renderer,
        "ours ms": parts["scene update"] + one[feature] + share * one[clip],
        "released ms": parts["scene update"] + one[clip],
    }


def run(request: Request, target: Path | None) -> dict[str, Any]:
    """Measures, prints tables, and writes the same as JSON to `target`.

    Raises:
        UserError: weights that cannot be loaded.
    """
    device = torch.device(request.device)
    subjects = Subjects(request.encoders, device)
    fitted = fitted_rewards(request.encoders.preset, device)
    baselines = {f"{name} ({RANDOM})": baseline(name, subjects) for name in request.baselines}
    results = []
    for count in request.envs:
        ways = {"ours": our_calls(subjects, count), "released": released_calls(subjects, count)}
        ways |= {name: calls_of(reward, count) for name, reward in fitted.items()}
        ways |= {way: baseline_calls(reward, subjects, count) for way, reward in baselines.items()}
        for way, calls in ways.items():
            print(f"{count} environments, {way}", file=sys.stderr, flush=True)
            for (unit, part), call in calls.items():
                times = wall_times(call, device, request.seconds)
                p50, p95, p99 = np.percentile(times, [50, 95, 99]).tolist()
                results.append(
                    {
                        "way": way, "envs": count, "unit": unit, "part": part, "p50 ms": p50, "p95 ms": p95,
                        "p99 ms": p99, "p50 ms per env": p50 / count, "calls": len(times),
                    }
                )  # fmt: skip
    report: dict[str, Any] = {
        "benchmark": "reward",
        "preset": request.encoders.preset,
        "note": subjects.note,
        "device": device_name(device),
        "torch": torch.__version__,
        "results": results,
        "agreement": agreement(subjects),
    }
    note = f" ({subjects.note})" if subjects.note else ""
    print(f"reward, preset {request.encoders.preset}{note} on {report['device']}, torch {torch.__version__}")
    print(table(results))
    print(f"\nthe same window, both ways:\n{table(report['agreement'])}")
    if request.rendering:
        report["rendering"] = found = rendering(subjects)
        print(f"\nrendering a step on {found['renderer']}: ours {found['ours ms']:.2f} ms, ", end="")
        print(f"released {found['released ms']:.2f} ms")
    if target is not None:
        write_json(target, report)
    return report
