"""Latency of the generated reward per environment step and per window, beside the released code's way (`released.py`).

A step is what each new frame costs: its feature. A window is what one that closes costs: both levels. Times are wall
times up to a result that is there, for all environments together. Both get the same weights and the same frames.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genreward_fast.bench.released import ReleasedReward
from genreward_fast.bench.timing import device_name, table
from genreward_fast.encoders import architectures
from genreward_fast.encoders.image import read_dino
from genreward_fast.encoders.presets import EncoderConfig, Encoders
from genreward_fast.encoders.video import read_vae
from genreward_fast.files import write_json
from genreward_fast.goals.goal import Goal
from genreward_fast.kernels.latent_cosine import latent_cosine
from genreward_fast.rewards.base import total
from genreward_fast.rewards.config import RewardConfig
from genreward_fast.rewards.genreward import GenReward
from genreward_fast.types import Batch, Window

ACTIONS = 4
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
    """

    encoders: EncoderConfig
    device: str = "cpu"
    envs: tuple[int, ...] = ENVS
    seconds: float = 2.0
    rendering: bool = True


class Subjects:
    """Our reward, the released one, and frames for both; windows of noise, so that nothing depends on a task."""

    def __init__(self, config: EncoderConfig, device: torch.device):
        self.device = device
        self.config = RewardConfig()
        self.encoders = Encoders(config, device)
        self.generator = torch.Generator().manual_seed(0)
        clip_size = config.clip_size
        self.goal = Goal("noise", self.noise(self.config.clip_frames, clip_size), self.config.clip_frames - 1)
        self.ours = GenReward(
            self.goal,
            config=self.config,
            video_encoder=self.encoders.video,
            image_encoder=self.encoders.image,
            action_size=ACTIONS,
            device=device,
        )
        self.ours.freeze([self._pairs(256)])
        self.note = self.ours.note
        self.sizes = (config.feature_size, clip_size)
        self._config = config
        self._released: list[ReleasedReward] = []

    def noise(self, *shape: int) -> Tensor:
        """(..., S, S, 3) uint8 pictures with large and small structure; the last of `shape` is S."""
        *count, size = shape
        coarse = torch.rand(int(np.prod(count)), 3, 8, 8, generator=self.generator)
        smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
        fine = 0.1 * torch.rand(smooth.shape, generator=self.generator)
        return (230 * smooth + 230 * fine).byte().permute(0, 2, 3, 1).reshape(*count, size, size, 3).contiguous()

    def window(self, count: int) -> Window:
        """Windows as the trainer hands them over: frames, features and actions are on the device."""
        steps = self.config.window
        rows = torch.randn(count, steps, self.ours.frames.feature_dim, generator=self.generator)
        return Window(
            clip=self.noise(count, self.config.clip_frames, self.sizes[1]).to(self.device),
            features=rows.to(self.device),
            action=(torch.rand(count, steps, ACTIONS, generator=self.generator) * 2 - 1).to(self.device),
            env_reward=torch.zeros(count, steps, device=self.device),
            fresh=steps,
        )

    def released(self, count: int) -> list[ReleasedReward]:
        """One of these for each environment, with our weights."""
        if not self._released:
            vae_source, dino_source = self._config.source("vae"), self._config.source("dino")
            preset, seed = self._config.preset, self._config.weights_seed
            self._vae = architectures.build_vae(preset, seed) if vae_source is None else read_vae(vae_source)
            self._vit = architectures.build_dino(preset, seed) if dino_source is None else read_dino(dino_source)
        fb = self.ours.frame_level
        while len(self._released) < count:
            self._released.append(
                ReleasedReward(
                    self._vae,
                    self._vit,
                    fb.forward_net,
                    fb.backward_net,
                    self.goal.clip(self.config.clip_frames, self.sizes[1]).numpy(),
                    self.goal.frame(self.sizes[1]).numpy(),
                    self.sizes[0],
                    self.device,
                )
            )
        return self._released[:count]

    def _pairs(self, count: int) -> Batch:
        never = torch.zeros(count, 2, dtype=torch.bool)
        return Batch(
            action=torch.rand(count, 2, ACTIONS, generator=self.generator) * 2 - 1,
            reward=torch.zeros(count, 2),
            is_first=never,
            is_last=never,
            is_terminal=never,
            index=torch.zeros(count, 2, dtype=torch.long),
            feature=torch.randn(count, 2, self.ours.frames.feature_dim, generator=self.generator),
        )


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
    results = []
    for count in request.envs:
        for way, calls in (("ours", our_calls(subjects, count)), ("released", released_calls(subjects, count))):
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
