"""r2dreamer (github.com/NM512/r2dreamer) with `rep_loss=dreamer`, as a contestant."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from genreward_fast.bench.contestant import ACTIONS, Contestant, Spec, Unavailable
from genreward_fast.bench.peers import Space, Spaces, add_checkout, settings, stand_in


class _TensorDict(dict):
    """As much of tensordict's class as acting and an update use, for machines without it."""

    def __init__(self, values: dict[str, Any], batch_size: tuple[int, ...] = ()):
        super().__init__(values)
        self.shape = self.batch_size = torch.Size(batch_size)


def build(spec: Spec) -> Contestant:
    import yaml

    folder = add_checkout(spec.checkout, "dreamer.py")
    notes = []
    try:
        from tensordict import TensorDict
    except ImportError:
        TensorDict, module = _TensorDict, ModuleType("tensordict")
        module.TensorDict = TensorDict  # type: ignore[attr-defined]
        sys.modules["tensordict"] = module
        notes.append("a plain dict in place of tensordict")
    stand_in(["torch.utils.tensorboard"])
    sizes = folder / "configs" / "model" / f"size{spec.size}.yaml"
    if not sizes.exists():
        raise Unavailable(f"has no configuration size{spec.size}")
    model = yaml.safe_load((sizes.parent / "_base_.yaml").read_text()) | yaml.safe_load(sizes.read_text())
    keys = {"mlp_keys": "$^", "cnn_keys": "image"}  # as its Meta-World configuration
    everything = {"model": model, "device": spec.device, "env": {"encoder": keys, "decoder": keys}}
    config = settings(everything).model
    config.update(rep_loss="dreamer", compile=spec.compile, imag_horizon=spec.imagination)

    import dreamer

    device = torch.device(spec.device)
    agent = dreamer.Dreamer(config, Spaces(image=Space(64, 64, 3)), Space(ACTIONS)).to(device)
    rows = (spec.batch_size, spec.batch_length)
    never = torch.zeros(*rows, 1, dtype=torch.bool, device=device)
    fields = {
        "image": torch.randint(0, 256, (*rows, 64, 64, 3), dtype=torch.uint8, device=device),
        "action": torch.rand(*rows, ACTIONS, device=device) * 2 - 1,
        "reward": torch.rand(*rows, 1, device=device),
        "is_first": never,
        "is_last": never,
        "is_terminal": never,
    }
    start = agent.get_initial_state(spec.batch_size)
    initial = (start["stoch"], start["deter"])
    # Its replay's place: a batch that lies ready on the device, and nothing written back.
    replay = SimpleNamespace(
        sample=lambda: (TensorDict(dict(fields), batch_size=rows), None, initial), update=lambda *_: None
    )

    def actor(count: int) -> Callable[[], Any]:
        image = torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8, device=device)
        first, state = torch.zeros(count, 1, dtype=torch.bool, device=device), agent.get_initial_state(count)
        return lambda: agent.act(TensorDict({"image": image, "is_first": first}, batch_size=(count,)), state)

    compiled = "torch.compile" if spec.compile else "eager"
    return Contestant(
        update=lambda: agent.update(replay),
        actor=actor,
        dtype="float16 autocast",
        parameters=sum(p.numel() for p in agent._named_params.values()),
        notes=[compiled, *notes],
    )
