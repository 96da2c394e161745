"""Golden arrays of the reference implementation (golden/README.md), and the map from its names to ours."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genreward_fast.agent import AgentConfig, Draws, NetworkSize, objective, rssm
from genreward_fast.types import Batch

# (pattern of a reference name, replacement): the first pattern that matches the whole name counts.
NAMES = [
    (r"enc/cnn(\d)", r"encoder.convs.\1"),
    (r"enc/cnn(\d)norm", r"encoder.norms.\1"),
    (r"dyn/dynin0", "rssm.deter_in.linear"),
    (r"dyn/dynin0norm", "rssm.deter_in.norm"),
    (r"dyn/dynin1", "rssm.stoch_in.linear"),
    (r"dyn/dynin1norm", "rssm.stoch_in.norm"),
    (r"dyn/dynin2", "rssm.action_in.linear"),
    (r"dyn/dynin2norm", "rssm.action_in.norm"),
    (r"dyn/dynhid0", "rssm.hidden"),
    (r"dyn/dynhid0norm", "rssm.hidden_norm"),
    (r"dyn/dyngru", "rssm.gates"),
    (r"dyn/prior(\d)", r"rssm.prior_mlp.\1.linear"),
    (r"dyn/prior(\d)norm", r"rssm.prior_mlp.\1.norm"),
    (r"dyn/priorlogit", "rssm.prior_logit"),
    (r"dyn/obs0", "rssm.posterior.linear"),
    (r"dyn/obs0norm", "rssm.posterior.norm"),
    (r"dyn/obslogit", "rssm.posterior_logit"),
    (r"dec/sp0", "decoder.from_deter"),
    (r"dec/sp1", "decoder.from_stoch.linear"),
    (r"dec/sp1norm", "decoder.from_stoch.norm"),
    (r"dec/sp2", "decoder.stoch_to_space"),
    (r"dec/spnorm", "decoder.space_norm"),
    (r"dec/conv(\d)", lambda match: f"decoder.convs.{2 - int(match[1])}"),  # theirs count down to the image
    (r"dec/conv(\d)norm", lambda match: f"decoder.norms.{2 - int(match[1])}"),
    (r"dec/imgout", "decoder.image"),
    (r"(\w+)/mlp/linear(\d)", lambda match: f"{HEADS[match[1]]}.mlp.{match[2]}.linear"),
    (r"(\w+)/mlp/norm(\d)", lambda match: f"{HEADS[match[1]]}.mlp.{match[2]}.norm"),
    (r"(\w+)/head/(logits?)", lambda match: f"{HEADS[match[1]]}.{match[2]}"),
    (r"pol/head/action/(mean|stddev)", r"actor.\1"),
]
HEADS = {"rew": "reward", "con": "continuation", "pol": "actor", "val": "critic", "slowval": "slow_critic"}


def our_name(reference: str) -> str:
    """'dyn/dynin0/kernel' to 'rssm.deter_in.linear.weight'."""
    layer, leaf = reference.rsplit("/", 1)
    leaf = {"kernel": "weight", "bias": "bias", "scale": "scale"}[leaf]
    for pattern, replacement in NAMES:
        match = re.fullmatch(pattern, layer)
        if match:
            return f"{replacement(match) if callable(replacement) else match.expand(replacement)}.{leaf}"
    raise KeyError(reference)


def our_layout(reference: str, array: Tensor) -> Tensor:
    """Kernels (in, out) to (out, in), HWIO to OIHW; block kernels, biases and scales as they are."""
    if reference.endswith("kernel") and array.ndim == 2:
        return array.t()
    return array.permute(3, 2, 0, 1) if array.ndim == 4 else array


class Arrays:
    """The arrays of one file as tensors, and their sections as parameters of a `Model`."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            self.tensors = {name: torch.from_numpy(np.array(file[name])) for name in file.files}

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def names(self, prefix: str) -> list[str]:
        """Names that start with `prefix`, without it."""
        return [name[len(prefix) :] for name in self.tensors if name.startswith(prefix)]

    def parameters(self, prefix: str) -> dict[str, Tensor]:
        """Our name -> value in our layout, of everything under `prefix`, such as 'param/' or 'step0/grad/'."""
        return {our_name(name): our_layout(name, self[prefix + name]) for name in self.names(prefix)}

    def load(self, model: nn.Module, prefix: str = "param/") -> None:
        """Writes the parameters under `prefix` into a `Model`; the others stay as they are."""
        own = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in self.parameters(prefix).items():
                own[name].copy_(value)

    def batch(self, prefix: str) -> Batch:
        """The replayed rows of one training step."""
        rows = self[prefix + "reward"].shape
        return Batch(
            image=self[prefix + "image"],
            action=self[prefix + "action"],
            reward=self[prefix + "reward"],
            is_first=self[prefix + "is_first"],
            is_last=self[prefix + "is_last"],
            is_terminal=self[prefix + "is_terminal"],
            deter=self[prefix + "dyn/deter"],
            stoch=self[prefix + "dyn/stoch"].argmax(-1).to(torch.uint8),
            index=torch.arange(rows.numel()).view(rows),
        )

    def draws(self, prefix: str) -> Draws:
        """The random draws of one training step."""
        return Draws(
            posterior=self[prefix + "post_stoch"].argmax(-1),
            prior=self[prefix + "imag_stoch"].argmax(-1),
            action=self[prefix + "imag_action"],
        )


class Golden:
    """Access to the files, and how they are compared."""

    limit = 1e-4

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str) -> Arrays:
        return Arrays(self.folder / f"{name}.npz")

    def config(self, **options) -> AgentConfig:
        """Sizes inferred from the shapes in train_step.npz; float32."""
        step = self("train_step")
        batch, rows, stoch, classes = step["step0/in/dyn/stoch"].shape
        network = NetworkSize(
            deter=step["param/dyn/dyngru/bias"].shape[0] // 3,
            hidden=step["param/dyn/dynin0/bias"].shape[0],
            classes=classes,
            depth=step["param/enc/cnn0/bias"].shape[0] // 2,
            units=step["param/rew/mlp/linear0/bias"].shape[0],
            stoch=stoch,
            blocks=step["param/dyn/dyngru/kernel"].shape[0],
        )
        sizes = {
            "size": "golden",
            "network": network,
            "dtype": "float32",
            "batch_size": batch,
            "batch_length": rows - 1,
            "imagination": int(step["cfg/imag_length"]),
            "bins": step["param/rew/head/logits/bias"].shape[0],
        }
        return AgentConfig(**{**sizes, **options})

    @property
    def action_size(self) -> int:
        return self("train_step")["step0/in/action"].shape[-1]

    @staticmethod
    def error(expected: Tensor, actual: Tensor) -> float:
        """Relative RMS error; absolute where everything expected is 0."""
        assert expected.shape == actual.shape, (expected.shape, actual.shape)
        difference = (expected.double() - actual.detach().double()).norm()
        return float(difference / (expected.double().norm() or 1.0))

    def check(self, pairs: Iterable[tuple[str, Tensor, Tensor]], limit: float | None = None) -> None:
        """Asserts that each (name, expected, actual) agrees; a NaN never does."""
        pairs = list(pairs)
        assert pairs
        errors = {name: self.error(expected, actual) for name, expected, actual in pairs}
        wrong = {name: error for name, error in errors.items() if not error <= (limit or self.limit)}
        assert not wrong, wrong


@pytest.fixture(scope="session")
def golden() -> Golden:
    folder = os.environ.get("GENREWARD_GOLDEN_DIR")
    return Golden(Path(folder) if folder else Path(__file__).parent / "golden")


@pytest.fixture
def calls(monkeypatch):
    """How often the kernels' forms of the recurrent model ran."""
    count = {"fused_scan": 0, "imagine": 0}
    for module, name in ((rssm, "fused_scan"), (objective, "imagine")):
        original = getattr(module, name)

        def counted(*args, name=name, original=original, **options):
            count[name] += 1
            return original(*args, **options)

        monkeypatch.setattr(module, name, counted)
    return count
