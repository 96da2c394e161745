"""Hyperparameters of DreamerV3 and the sizes its networks come in."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from genreward_fast.errors import UserError

IMAGE_SIZE = 64
"""Side in pixels of the agent's square image."""
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class NetworkSize:
    """Widths of the networks.

    Attributes:
        deter: units of the deterministic state; a multiple of `blocks`.
        hidden: units of the recurrent model's hidden layers.
        classes: classes of each categorical latent (at most 256, so that an index fits a byte).
        depth: channels of the image networks, before the multipliers 2, 3, 4, 4.
        units: units of the heads' hidden layers.
        stoch: categorical latents.
        blocks: diagonal blocks of the recurrent weights.
    """

    deter: int
    hidden: int
    classes: int
    depth: int
    units: int
    stoch: int = 32
    blocks: int = 8


SIZES: dict[str, NetworkSize] = {
    "tiny": NetworkSize(deter=512, hidden=64, classes=4, depth=4, units=64),
    "12M": NetworkSize(deter=2048, hidden=256, classes=16, depth=16, units=256),
    "25M": NetworkSize(deter=3072, hidden=384, classes=24, depth=24, units=384),
    "50M": NetworkSize(deter=4096, hidden=512, classes=32, depth=32, units=512),
    "100M": NetworkSize(deter=6144, hidden=768, classes=48, depth=48, units=768),
    "200M": NetworkSize(deter=8192, hidden=1024, classes=64, depth=64, units=1024),
    "400M": NetworkSize(deter=12288, hidden=1536, classes=96, depth=96, units=1536),
}
"""The published sizes; `tiny` is the one published as 1M."""


@dataclass(frozen=True)
class AgentConfig:
    """All hyperparameters, with the published defaults (Hafner et al., "Mastering diverse control tasks through world
    models", Nature 2025, and the code that goes with it).

    Attributes:
        size: a name in `SIZES`.
        network: widths other than the named ones; `size` is then a mere label.
        dtype: what the networks compute in. Parameters, losses, returns and the optimiser are float32. With "float64",
            which is for checks of the others' exactness, they are float64, too, and nothing goes through the kernels.
        batch_size: sequences in a batch.
        batch_length: rows of a sequence that are trained on; a batch has `context` more in front.
        context: rows in front whose last one gives the recurrent state to start from, as stored in the replay.
        imagination: steps imagined from every trained row.
        discount_horizon: the discount is 1 - 1 / `discount_horizon`.
        continue_discount: the continuation head predicts the discount times (not terminal), so that imagined returns
            need no further discount.
        slow_target: return targets come from the slow critic instead of the critic.
        lam: λ of the λ-return.
        free_nats: KL below this many nats costs nothing.
        unimix: share of the uniform distribution in every categorical latent.
        entropy: weight of the policy's entropy.
        min_std, max_std: bounds of the policy's standard deviation.
        bins: bins of the two-hot reward and value distributions.
        return_rate, return_limit, return_low, return_high: the return range's step size, its least width, and its
            percentiles.
        slow_rate: step of the slow critic towards the critic after every update.
        slow_regularizer: weight of the loss that keeps the critic near the slow one.
        scale_*: weights of the losses.
        lr, warmup: learning rate, and updates over which it rises linearly from 0.
        beta1, beta2, eps: LaProp's momentum, second moment and denominator.
        agc, agc_min: adaptive gradient clipping: the largest ratio of gradient norm to parameter norm, and the least
            parameter norm that counts.
        capture: on CUDA, run updates and acting as CUDA graphs; the results are those of the plain code.

    Raises:
        UserError: an unknown size or dtype, or a number out of its range.
    """

    size: str = "12M"
    network: NetworkSize | None = None
    dtype: Literal["bfloat16", "float32", "float64"] = "bfloat16"
    batch_size: int = 16
    batch_length: int = 64
    context: int = 1
    imagination: int = 15
    discount_horizon: float = 333.0
    continue_discount: bool = True
    slow_target: bool = False
    lam: float = 0.95
    free_nats: float = 1.0
    unimix: float = 0.01
    entropy: float = 3e-4
    min_std: float = 0.1
    max_std: float = 1.0
    bins: int = 255
    return_rate: float = 0.01
    return_limit: float = 1.0
    return_low: float = 5.0
    return_high: float = 95.0
    slow_rate: float = 0.02
    slow_regularizer: float = 1.0
    scale_dyn: float = 1.0
    scale_rep: float = 0.1
    scale_image: float = 1.0
    scale_reward: float = 1.0
    scale_con: float = 1.0
    scale_policy: float = 1.0
    scale_value: float = 1.0
    scale_repval: float = 0.3
    lr: float = 4e-5
    warmup: int = 1000
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-20
    agc: float = 0.3
    agc_min: float = 1e-3
    capture: bool = True

    def __post_init__(self) -> None:
        if self.network is None and self.size not in SIZES:
            raise UserError(f"agent size {self.size!r} is unknown; choose one of {', '.join(SIZES)}")
        if self.dtype not in _DTYPES:
            raise UserError(f"agent dtype {self.dtype!r} is unknown; choose one of {', '.join(_DTYPES)}")
        for name in ("batch_size", "batch_length", "context", "imagination"):
            if getattr(self, name) < 1:
                raise UserError(f"agent {name} is {getattr(self, name)}; it must be at least 1")
        # The replay-value loss averages over the steps between trained rows.
        if self.batch_length < 2:
            raise UserError(f"agent batch_length is {self.batch_length}; it must be at least 2")
        if self.bins < 3 or self.bins % 2 == 0:
            raise UserError(f"agent bins is {self.bins}; it must be an odd number, at least 3")
        if not 0 < self.lr < math.inf:
            raise UserError(f"agent lr is {self.lr}; it must be a number above 0")
        if self.warmup < 0:
            raise UserError(f"agent warmup is {self.warmup}; it must not be negative")
        sizes = self.sizes
        if sizes.deter % sizes.blocks or 64 * sizes.depth % sizes.blocks:
            raise UserError(f"agent network {sizes}: deter and 64 * depth must be multiples of blocks")
        if not 1 <= sizes.classes <= 256:
            raise UserError(f"agent network classes is {sizes.classes}; it must lie in 1..256")

    @property
    def sizes(self) -> NetworkSize:
        """The networks' widths."""
        return self.network if self.network is not None else SIZES[self.size]

    @property
    def compute_dtype(self) -> torch.dtype:
        """`dtype` as torch names it."""
        return _DTYPES[self.dtype]

    @property
    def wide_dtype(self) -> torch.dtype:
        """What parameters, losses, returns and the optimiser are in: float32 or float64."""
        return torch.promote_types(self.compute_dtype, torch.float32)

    @property
    def scales(self) -> dict[str, float]:
        """The weight of each loss by its name."""
        names = ("dyn", "rep", "image", "reward", "con", "policy", "value", "repval")
        return {name: getattr(self, f"scale_{name}") for name in names}

    @property
    def discount(self) -> float:
        """1 - 1 / `discount_horizon`."""
        return 1 - 1 / self.discount_horizon

    @property
    def feature_size(self) -> int:
        """Length of [deter, flattened one-hot stoch], which all heads read."""
        return self.sizes.deter + self.sizes.stoch * self.sizes.classes

    def describe(self) -> dict[str, Any]:
        """Name and widths, as plain values for a checkpoint."""
        return {"size": self.size, **asdict(self.sizes)}
