"""What a replay holds, and how much of it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch

from genreward_fast.errors import UserError

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class ReplayConfig:
    """Sizes of a replay.

    Attributes:
        num_envs: N.
        capacity: rows kept, over all environments.
        action_size: A, floats in an action.
        feature_dim: D, floats in a feature; 0 to store none.
        deter_size, stoch_size: sizes of the world model's recurrent state.
        sequence_length: L, rows of a sequence that are trained on.
        context: rows in front of them, whose stored latents start the recurrence.
        image_size: side of the square RGB frames in pixels.
        deter_dtype: bfloat16, float16 or float32; in which the deterministic latents are kept.
        withheld: most rows of one environment that wait for their release at a time.
        chunk_bytes: upper limit for one file of a saved replay.

    Raises:
        UserError: a value makes no sense, or the capacity is too small for one sequence per environment.
    """

    num_envs: int
    capacity: int
    action_size: int
    feature_dim: int
    deter_size: int
    stoch_size: int
    sequence_length: int = 64
    context: int = 1
    image_size: int = 64
    deter_dtype: str = "bfloat16"
    withheld: int = 0
    chunk_bytes: int = 256 * 2**20

    def __post_init__(self) -> None:
        least = {"sequence_length": 2, "feature_dim": 0, "context": 0, "withheld": 0}
        for name, value in asdict(self).items():
            if name != "deter_dtype" and value < least.get(name, 1):
                raise UserError(f"the replay's {name} must be at least {least.get(name, 1)}, not {value}")
        if self.deter_dtype not in DTYPES:
            raise UserError(f"the replay's deter_dtype must be one of {', '.join(DTYPES)}, not {self.deter_dtype}")
        minimum = self.num_envs * (self.withheld + self.sequence_length + self.context)
        if self.capacity < minimum:
            raise UserError(
                f"a replay of {self.capacity} rows is too small for {self.num_envs} environments: "
                f"set its capacity to at least {minimum}"
            )

    @property
    def slots(self) -> int:
        """R, rows kept of each environment."""
        return self.capacity // self.num_envs

    def fields(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name -> (shape of one row, dtype). `flags` are is_first, is_last and is_terminal."""
        fields: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "image": ((self.image_size, self.image_size, 3), torch.uint8),
            "action": ((self.action_size,), torch.float32),
            "reward": ((), torch.float32),
            "flags": ((3,), torch.bool),
            "deter": ((self.deter_size,), DTYPES[self.deter_dtype]),
            "stoch": ((self.stoch_size,), torch.uint8),
        }
        if self.feature_dim:
            fields["feature"] = ((self.feature_dim,), torch.float16)
        return fields

    def row_bytes(self) -> int:
        """Bytes of one row."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.fields().values())

    def layout(self) -> dict[str, int | str]:
        """What a saved replay must have in common with the one that loads it; the capacity may differ."""
        free = ("capacity", "withheld", "chunk_bytes")
        return {name: value for name, value in asdict(self).items() if name not in free}
