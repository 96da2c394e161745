"""Where the trials of a sweep run, and what each of them gets there."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from genreward_fast.errors import UserError
from genreward_fast.training.sweep.cluster import Cluster, require_ray
from genreward_fast.training.sweep.grid import Trial
from genreward_fast.training.sweep.local import Local
from genreward_fast.training.sweep.machines import Machines, Resources


@dataclass(frozen=True)
class Places:
    """Where trials run, and how many at once.

    Attributes:
        ray: address of a running Ray cluster; None: this machine.
        local: this machine, without Ray.
        gpus: of this machine that the sweep may use; None: all.
        gpus_per_trial: GPUs or a fraction of one; None: one where there are any, unless the runs are for a CPU.
        cpus_per_trial: cores; None: one beside a GPU, two without, of a machine that has them.
    """

    ray: str | None = None
    local: bool = False
    gpus: int | None = None
    gpus_per_trial: float | None = None
    cpus_per_trial: float | None = None

    def __post_init__(self) -> None:
        if self.ray is not None and self.local:
            raise UserError("--local together with --ray: this machine alone, or that cluster; leave one out")
        if self.ray is not None and self.gpus is not None:
            raise UserError("--gpus together with --ray: a cluster says itself what it has; leave one out")
        if self.gpus is not None and self.gpus < 0:
            raise UserError(f"--gpus {self.gpus}: must not be negative")
        gpus, cpus = self.gpus_per_trial, self.cpus_per_trial
        if gpus is not None and not (0 <= gpus <= 1 or (gpus > 1 and math.isfinite(gpus) and gpus == int(gpus))):
            raise UserError(f"--gpus-per-trial {gpus}: must be a fraction of one GPU, or a whole number")
        if cpus is not None and not (0 < cpus < 1 or (cpus >= 1 and math.isfinite(cpus) and cpus == int(cpus))):
            raise UserError(f"--cpus-per-trial {cpus}: must be a fraction of one core, or a whole number")

    def require_libraries(self) -> None:
        """Raises UserError if what these places need is not installed."""
        if not self.local:
            require_ray()

    def machines(self) -> Machines:
        """Connects to the cluster, or starts one here. Raises UserError if none answers, or GPUs are missing."""
        if self.ray is not None:
            return Cluster(self.ray)
        import torch

        there = torch.cuda.device_count()
        gpus = there if self.gpus is None else self.gpus
        if gpus > there:
            raise UserError(f"--gpus {gpus}: this machine has {there}")
        cpus = len(os.sched_getaffinity(0))
        if self.local:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            names = visible.split(",") if visible else [str(index) for index in range(there)]
            return Local(cpus, [name.strip() for name in names][:gpus])
        return Cluster(cpus=cpus, gpus=gpus)

    def resources(self, machines: Machines, trials: Sequence[Trial]) -> Resources:
        """What each trial gets. Raises UserError if no machine has that much."""
        for_cpu = all(trial.config.train.device == "cpu" for trial in trials)
        gpus = self.gpus_per_trial
        if gpus is None:
            gpus = 1.0 if machines.has_gpus() and not for_cpu else 0.0
        cpus = self.cpus_per_trial
        if cpus is None:
            most = max((machine["Resources"].get("CPU", 0) for machine in machines.machines()), default=0)
            cpus = 1.0 if gpus or most < 2 else 2.0
        if gpus == 0 and any(trial.config.train.device == "cuda" for trial in trials):
            raise UserError(
                "--device cuda: no trial would have a GPU; leave it out, or see --gpus and --gpus-per-trial"
            )
        resources = Resources(gpus, cpus)
        if machines.capacity(resources) == 0:
            raise UserError(f"no machine has {gpus:g} GPUs and {cpus:g} CPU cores for a trial; ask for less with "
                            "--gpus-per-trial and --cpus-per-trial")  # fmt: skip
        return resources
