"""What the frame level's r_FB means on Meta-World: does it rise towards the goal, and does it tell experts from chance?

For each task FB is trained on a replay of scripted-expert, noisy-expert and random episodes ("mixed") and on random
episodes alone ("random": a stand-in for what an agent sees early on). On held-out episodes, with an expert's final
frame as the goal, it measures
- Spearman's correlation of r_FB with the steps left to success, along the expert's episode (-1 is best), and
- the AUC of the expert's steps over random steps: how often r_FB of the former is greater (1 is best).
Once with the features ψ of the image encoder ("dino") and once with the simulator's low-dimensional state ("state"), so
that FB's quality and the features' are told apart.

usage: python benchmarks/rewards/fb_meaning.py [--task NAME ...] [--dino PATH --device cuda] [--replay RUN]

Every task is written to the JSON when it is done; run again with the same settings, it goes on with the next one.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fb_meaning_data import AFTER, Episode, Recorder, Sampler, replay_of, replay_of_run
from fb_meaning_picture import REPLAY, VARIANT, draw
from scipy.stats import mannwhitneyu, spearmanr

from genreward_fast.encoders.presets import EncoderConfig, load_image_encoder
from genreward_fast.envs.env_config import ACTION_SIZE
from genreward_fast.envs.tasks import PAPER_TASKS, canonical
from genreward_fast.errors import UserError
from genreward_fast.files import read_json, write_json
from genreward_fast.kernels.fb_score import fb_score, fold
from genreward_fast.rewards.config import FBConfig
from genreward_fast.rewards.fb import ForwardBackward
from genreward_fast.training.logger import Progress

RESULTS = Path(__file__).resolve().parent.parent / "results"
HELD_OUT = 10_000  # first seed of the episodes that FB never learns from
VARIANTS: dict[str, dict[str, Any]] = {
    "replay": {"next_action": "replay"},
    "replay, standardised": {"next_action": "replay", "standardise_features": True},
    "policy, standardised": {"next_action": "policy", "standardise_features": True},
}


def train_fb(
    sample: Sampler, goal: torch.Tensor, config: FBConfig, updates: int, progress: Progress, done: int
) -> ForwardBackward:
    """FB after `updates` updates on batches of `sample`, with `goal` (D,) as the run's own goal."""
    fb = ForwardBackward(config, goal, ACTION_SIZE, goal.device)
    for update in range(updates):
        fb.update(sample(config.batch))
        progress.show(done + update + 1)
    return fb


@torch.no_grad()
def scores(fb: ForwardBackward, episode: Episode, features: str, goal: torch.Tensor) -> np.ndarray:
    """Raw r_FB (T,) of an episode's rows at the goal (D,)."""
    z = fb.backward_average(fb.seen(goal.to(fb.goal)))
    feature = fb.seen(episode.features[features][:-1].to(fb.goal))
    action = episode.action.to(fb.goal)
    return fb_score(feature, action, fold(fb.forward_average, z, z), fb.config.reduce).cpu().numpy().astype(np.float64)


def measure(fb: ForwardBackward, held_out: dict[str, list[Episode]], features: str) -> dict[str, Any]:
    """Spearman's correlation and AUC over the held-out episodes, their means and one by one."""
    correlations, areas = [], []
    for expert in held_out["expert"]:
        goal = expert.features[features][-1]
        along = scores(fb, expert, features, goal)
        correlations.append(float(spearmanr(along, np.arange(len(along), 0, -1)).statistic))
        by_chance = np.concatenate([scores(fb, episode, features, goal) for episode in held_out["random"]])
        areas.append(float(mannwhitneyu(along, by_chance).statistic) / (len(along) * len(by_chance)))
    return {
        "spearman": float(np.mean(correlations)),
        "spearman_episodes": correlations,
        "auc": float(np.mean(areas)),
        "auc_episodes": areas,
    }


def curves(fb: ForwardBackward, held_out: dict[str, list[Episode]], features: str) -> dict[str, list[float]]:
    """r_FB along the first episode of each kind, at the final frame of the expert's."""
    goal = held_out["expert"][0].features[features][-1]
    return {kind: scores(fb, episodes[0], features, goal).round(4).tolist() for kind, episodes in held_out.items()}


def alike(features: torch.Tensor) -> float:
    """Mean cosine of different rows of (n, D): 1 if all point the same way."""
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    count = len(unit)
    return float((unit.sum(0).square().sum() - count) / (count * (count - 1)))


def study(task: str, options: argparse.Namespace, encoder: Any, own: Sampler | None) -> dict[str, Any]:
    """All variants for one task."""
    device = torch.device(options.device)
    recorder = Recorder(task, encoder if "dino" in options.features else None, options.steps)
    episodes, held_out = options.episodes, options.held_out
    try:
        print(f"{task}: recording", file=sys.stderr, flush=True)
        experts = recorder.experts(episodes, 0, after=AFTER)
        noisy = [recorder.noisy(1000 + seed) for seed in range(episodes)]
        chance = [recorder.random(2000 + seed) for seed in range(2 * episodes)]
        test = {"expert": recorder.experts(held_out, HELD_OUT)}
        half = [len(episode.action) // 2 for episode in test["expert"]]
        test["half expert"] = [recorder.random(HELD_OUT + 1000 + n, scripted=half[n]) for n in range(held_out)]
        test["random"] = [recorder.random(HELD_OUT + 2000 + n) for n in range(held_out)]
    finally:
        recorder.close()
    replays = {"mixed": [*experts, *noisy, *chance[:episodes]], "random": chance}
    plan = [(features, replay, variant) for features in options.features for replay in replays for variant in VARIANTS]
    if own is not None and "dino" in options.features:  # a run keeps no simulator states
        plan += [("dino", "own", variant) for variant in VARIANTS]
    progress = Progress(len(plan) * options.updates)
    figures: list[dict[str, Any]] = []
    for features, replay, variant in plan:
        sample = own if own and replay == "own" else replay_of(replays[replay], features, 0, device)
        config = dataclasses.replace(options.fb, **VARIANTS[variant])
        goal = experts[0].features[features][experts[0].solved].to(device)
        fb = train_fb(sample, goal, config, options.updates, progress, len(figures) * options.updates)
        figures.append({"features": features, "replay": replay, "variant": variant, **measure(fb, test, features)})
        last = figures[-1]
        if (replay, variant) == (REPLAY, VARIANT):
            last["curves"] = curves(fb, test, features)
        line = f"{task}: {features}, {replay}, {variant}: Spearman {last['spearman']:+.2f}, AUC {last['auc']:.2f}"
        print(line, file=sys.stderr, flush=True)
    rows = {kind: sum(len(e.action) for e in parts) for kind, parts in replays.items()}
    cosine = {f: alike(torch.cat([e.features[f] for e in replays["mixed"]])) for f in options.features}
    return {"rows": rows, "cosine_between_features": cosine, "figures": figures}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", action="append", help="may be given several times  [default: the paper's five]")
    parser.add_argument("--features", nargs="+", choices=("state", "dino"), default=["state", "dino"])
    parser.add_argument("--dino", help="folder or hub id of DINOv3  [default: the preset tiny's, untrained]")
    parser.add_argument("--replay", type=Path, help="a run's folder: its own replay is a third one, and its task alone")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--episodes", type=int, default=6, help="of each kind in the replay")
    parser.add_argument("--held-out", type=int, default=4, help="episodes of each kind to measure on")
    parser.add_argument("--steps", type=int, default=100, help="of noisy, random and half-expert episodes")
    parser.add_argument("--updates", type=int, default=800)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--z-dim", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--json", type=Path, default=RESULTS / "fb_meaning.json")
    options = parser.parse_args(arguments)
    for name, least in (("episodes", 1), ("held_out", 1), ("steps", 2), ("updates", 1)):
        if getattr(options, name) < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(options, name)}")
    options.fb = FBConfig(z_dim=options.z_dim, hidden=options.hidden, batch=options.batch, lr=options.lr, tau=0.02)
    return options


def main(arguments: list[str] | None = None) -> int:
    try:
        options = parse(arguments)
        tasks = [canonical(task) for task in options.task or PAPER_TASKS]
        encoders, own = EncoderConfig("paper" if options.dino else "tiny", dino=options.dino), None
        if options.replay:
            config, own = replay_of_run(options.replay)
            tasks, encoders = [config.env.task], config.encoders
        encoder = load_image_encoder(encoders, options.device) if "dino" in options.features else None
        settings = {
            "fb": dataclasses.asdict(options.fb),
            "updates": options.updates,
            "episodes": options.episodes,
            "held_out": options.held_out,
            "steps": options.steps,
            "features": options.features,
            "image_encoder": encoder.fingerprint if encoder else "",
            "own_replay": str(options.replay or ""),
        }
        note = encoder.note if encoder else ""
        result = read_json(options.json) if options.json.exists() else {}
        if result.get("settings") != settings:
            if result:
                print(f"{options.json}: was made with other settings; begun anew", file=sys.stderr)
            result = {"settings": settings, "note": note, "torch": torch.__version__, "tasks": {}}
        for task in tasks:
            if task in result["tasks"]:
                print(f"{task}: done before", file=sys.stderr)
                continue
            began = time.monotonic()
            result["tasks"][task] = study(task, options, encoder, own) | {"seconds": time.monotonic() - began}
            write_json(options.json, result)
            draw(result, options.json.with_suffix(".png"))
    except UserError as error:
        print(f"fb_meaning: {error}", file=sys.stderr)
        return 2
    draw(result, options.json.with_suffix(".png"))
    if note:
        print(f"note: {note}: what is measured with the features of 'dino' says nothing about trained ones")
    print(f"everything is in {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
