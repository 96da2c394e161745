"""What each kind of distraction adds to an environment step with a picture."""

from __future__ import annotations

import importlib.util
import statistics
import time
from typing import Any

import numpy as np

TASK = "cheetah-run"
SIZE = 64


def distraction_parts(rendering: Any, steps: int) -> dict[str, float]:
    """Median milliseconds of a simulator step and its picture, without distractions and with the hardest dynamic ones.

    {} if dm_control is not installed.
    """
    if importlib.util.find_spec("dm_control") is None:
        return {}
    from genreward_fast.envs.control_config import DISTRACTION_TYPES

    kinds: dict[str, dict[str, Any]] = {"plain": {"distraction": "none"}}
    for kind in DISTRACTION_TYPES:
        kinds[kind] = {"distraction": "hard", "dynamic_distractions": True, "distraction_types": (kind,)}
    kinds["all three"] = {"distraction": "hard", "dynamic_distractions": True}
    return {
        f"{TASK}, {kind}: step and {SIZE}": _milliseconds({"rendering": rendering, **options}, steps)
        for kind, options in kinds.items()
    }


def _milliseconds(options: dict[str, Any], steps: int) -> float:
    from genreward_fast.envs.control_config import ControlConfig
    from genreward_fast.envs.control_env import ControlEnv

    env = ControlEnv(ControlConfig(TASK, action_repeat=1, episode_length=steps + 10, **options))
    random = np.random.default_rng(0)
    out = {SIZE: np.empty((SIZE, SIZE, 3), np.uint8)}
    env.reset(seed=0)
    env.render_sizes(out, out)  # buffers and shaders are made at the first picture
    times = []
    for _ in range(steps):
        action = random.uniform(-1, 1, env.action_size).astype(np.float32)
        start = time.perf_counter()
        env.step(action)
        env.render_sizes(out, out)
        times.append(time.perf_counter() - start)
    env.close()
    return 1e3 * statistics.median(times)
