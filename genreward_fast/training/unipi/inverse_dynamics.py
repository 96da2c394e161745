"""Inverse dynamics: which action leads from one picture to another one."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cattrs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from genreward_fast.errors import UserError, first_line
from genreward_fast.files import atomic_path, read_json, write_json

WEIGHTS = "inverse_dynamics.safetensors"
RECORD = "inverse_dynamics.json"
_FORMAT = {"format": "genreward inverse dynamics", "version": 1}
_POOLED = 4  # rows and columns of the grid that the picture ends as


@dataclass(frozen=True)
class NetworkConfig:
    """
    Attributes:
        action_size: A.
        height, width: of the pictures in pixels.
        max_gap: most steps between the two pictures.
        channels: of the first convolution; every later stage has twice its predecessor's, at most four times these.

    Raises:
        UserError: a value is out of its range.
    """

    action_size: int
    height: int = 96
    width: int = 96
    max_gap: int = 4
    channels: int = 32

    def __post_init__(self) -> None:
        for name, least in (("action_size", 1), ("height", 16), ("width", 16), ("max_gap", 1), ("channels", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name.replace('_', ' ')} {getattr(self, name)}: must be at least {least}")


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(functional.relu(self.first(functional.relu(x))))


class InverseDynamics(nn.Module):
    """The mean action over the `gap` steps from one picture to another.

    A convolution, three stages of a convolution and a residual block, an MLP of (128, A): like UniPi's (arXiv
    2302.00111, appendix A), which pools over the whole picture. Here every stage halves the picture, and a grid of
    4 × 4 places is left, because how far a centimetre reaches in the picture depends on where it is. The gap is given
    as one more channel.

    Attributes:
        config: its sizes.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels * factor for factor in (1, 2, 4, 4)]
        layers: list[nn.Module] = [nn.Conv2d(10, widths[0], 3, stride=2, padding=1)]
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.ReLU(), nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), _Residual(outputs)]
        self.body = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(_POOLED))
        self.head = nn.Sequential(
            nn.Linear(widths[-1] * _POOLED**2, 128), nn.ReLU(), nn.Linear(128, config.action_size)
        )

    def forward(self, first: Tensor, second: Tensor, gap: Tensor) -> Tensor:
        """What is fitted: not held within [-1, 1], so that an action at its limit can be met.

        Args:
            first, second: (N, H, W, 3) uint8.
            gap: (N,) int64, steps between them, from 1 to `max_gap`.

        Returns:
            (N, A) float32.
        """
        before, after = (frames.movedim(-1, 1).float() / 127.5 - 1 for frames in (first, second))
        steps = (gap.float() / self.config.max_gap).view(-1, 1, 1, 1).expand(-1, 1, *before.shape[2:])
        # One step moves the hand by less than a pixel: the difference, which is small, is what it shows in.
        return self.head(self.body(torch.cat([before, after, 4 * (after - before), steps], dim=1)).flatten(1))

    @torch.no_grad()
    def actions(self, first: Tensor, second: Tensor, gap: Tensor, batch: int = 64) -> Tensor:
        """(N, A) float32 in [-1, 1] on the CPU; `batch` pairs at a time. See `forward` for the arguments."""
        device = next(self.parameters()).device
        parts = []
        for start in range(0, len(first), batch):
            some = slice(start, start + batch)
            parts.append(self(first[some].to(device), second[some].to(device), gap[some].to(device)).cpu())
        return torch.cat(parts).clamp(-1, 1)


@dataclass(frozen=True, eq=False)
class FittedDynamics:
    """A fitted network, and what it was fitted on.

    Attributes:
        network: in eval mode.
        record: as JSON. `camera`, `rendering` and `size` of the demonstrations, `tasks` (name to the mean number of
            steps of its demonstrations), `held_out` (errors on clips that were not fitted on), how it was fitted.
    """

    network: InverseDynamics
    record: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Writes the weights, then the record that says that they are whole; each appears complete or not at all."""
        weights = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        with atomic_path(folder / WEIGHTS) as temporary:
            temporary.write_bytes(save(weights))
        network = dataclasses.asdict(self.network.config)
        write_json(folder / RECORD, {**_FORMAT, "network": network, **self.record})

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> FittedDynamics:
        """
        Raises:
            UserError: no such folder, or a file is missing, damaged, or of something else.
        """
        if not (folder / RECORD).is_file():
            raise UserError(f"{folder}: holds no {RECORD}; make it with genreward fit inverse-dynamics")
        record = read_json(folder / RECORD)
        try:
            if any(record.pop(key) != value for key, value in _FORMAT.items()):
                raise ValueError("of another version")
            network = InverseDynamics(cattrs.structure(record.pop("network"), NetworkConfig))
            record["tasks"] = {str(name): float(steps) for name, steps in record["tasks"].items()}
            record |= {name: kind(record[name]) for name, kind in (("camera", str), ("rendering", str), ("size", int))}
        except (cattrs.BaseValidationError, UserError, TypeError, KeyError, ValueError, AttributeError) as error:
            raise UserError(
                f"{folder / RECORD}: is not of inverse dynamics of this version ({first_line(error)}); fit them again"
            ) from None
        try:
            network.load_state_dict(load_file(folder / WEIGHTS))
        except FileNotFoundError:
            raise UserError(f"{folder / WEIGHTS}: no such file; fit the inverse dynamics again") from None
        except (SafetensorError, RuntimeError, OSError) as error:
            raise UserError(f"{folder / WEIGHTS}: damaged, or of another network ({first_line(error)})") from None
        return cls(network.to(device).eval(), record)
