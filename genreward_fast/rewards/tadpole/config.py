"""The settings of TADPoLe, checked when they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass

from genreward_fast.errors import UserError


@dataclass(frozen=True)
class TadpoleConfig:
    """TADPoLe and Video-TADPoLe (arXiv 2407.01903).

    Attributes:
        align: w₁, weight of the alignment ‖ε_c − ε_u‖².
        reconstruct: w₂, weight of the reconstruction ‖ε_u − ε‖² − ‖ε_c − ε‖².
        noise_from, noise_upto: t is drawn from the noise levels [noise_from, noise_upto) of the model's schedule.
        batch: frames (tadpole) that the model is given at once; a window of video-tadpole is given alone.
        motion_adapter: video-tadpole's motion modules, hub id or folder, where the weights are of an image model.

    Raises:
        UserError: a value is out of its range.
    """

    align: float = 2000.0
    reconstruct: float = 200.0
    noise_from: int = 500
    noise_upto: int = 600
    batch: int = 16
    motion_adapter: str = ""

    def __post_init__(self) -> None:
        for name in ("align", "reconstruct"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"TADPoLe {name} must be a finite number >= 0, not {getattr(self, name)}")
        if not 0 <= self.noise_from < self.noise_upto:
            raise UserError(
                f"TADPoLe noise levels [{self.noise_from}, {self.noise_upto}): the first must be at least 0 and below "
                "the second"
            )
        if self.batch < 1:
            raise UserError(f"TADPoLe batch must be at least 1, not {self.batch}")
