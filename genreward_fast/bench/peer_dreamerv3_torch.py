"""dreamerv3-torch (github.com/NM512/dreamerv3-torch), as a contestant."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from genreward_fast.bench.contestant import ACTIONS, Contestant, Spec, Unavailable
from genreward_fast.bench.peers import Space, Spaces, add_checkout, settings, stand_in


def build(spec: Spec) -> Contestant:
    import yaml

    if spec.size != "12M":
        raise Unavailable("has no named sizes; its defaults are timed beside 12M")
    folder = add_checkout(spec.checkout, "dreamer.py")
    stand_in(["gym", "ruamel", "ruamel.yaml", "torch.utils.tensorboard"])
    warnings.filterwarnings("ignore", category=FutureWarning)
    config = settings(yaml.safe_load((folder / "configs.yaml").read_text())["defaults"])
    config.update(
        device=spec.device,
        num_actions=ACTIONS,
        batch_size=spec.batch_size,
        batch_length=spec.batch_length,
        imag_horizon=spec.imagination,
        compile=False,  # its option wraps modules of which an update calls other methods: nothing would be compiled
        precision=16 if spec.dtype == "float16" else 32,
        steps=int(config.steps),
    )
    import dreamer

    image = Spaces(image=Space(64, 64, 3))
    agent = dreamer.Dreamer(image, Space(ACTIONS), config, SimpleNamespace(step=0), None).to(spec.device)
    agent.requires_grad_(requires_grad=False)
    random = np.random.default_rng(0)
    rows = (spec.batch_size, spec.batch_length)
    never = np.zeros(rows, bool)
    # In host memory, as its dataset gives it: the copy to the device is part of its update.
    batch = {
        "image": random.integers(0, 256, (*rows, 64, 64, 3), dtype=np.uint8),
        "action": random.uniform(-1, 1, (*rows, ACTIONS)).astype(np.float32),
        "reward": random.uniform(0, 1, rows).astype(np.float32),
        "discount": np.ones(rows, np.float32),
        "is_first": never,
        "is_terminal": never,
    }

    def update() -> None:
        agent._train(batch)
        agent._metrics.clear()  # it keeps every value until it logs

    def actor(count: int) -> Callable[[], Any]:
        never = np.zeros(count, bool)
        seen = {
            "image": random.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8),
            "is_first": never,
            "is_terminal": never,
        }
        with torch.no_grad():
            state = agent._policy(seen, None, training=True)[1]
        return torch.no_grad()(lambda: agent._policy(seen, state, training=True))

    modules = (agent._wm, agent._task_behavior.actor, agent._task_behavior.value)
    return Contestant(
        update=update,
        actor=actor,
        dtype="float16 autocast" if config.precision == 16 else "float32",
        parameters=sum(p.numel() for module in modules for p in module.parameters()),
        notes=["its default sizes, eager, DreamerV3 of 2023"],
    )
