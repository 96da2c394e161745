"""Two processes with one clip each are one process with two."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from genreward_fast.goals.finetune import state
from genreward_fast.goals.finetune.start import finetune

SETTINGS = ["--steps", "3", "--warmup", "1", "--lr", "0.005", "--ema-decay", "0.5", "--device", "cpu"]


def launch(data: Path, model: Path, out: Path, *arguments: str) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
        "genreward_fast.cli", "finetune", "--data", str(data), "--model", str(model), "--out", str(out),
        "--batch-size", "1", *SETTINGS, *arguments,
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("rank", [4, None])
def test_two_processes_are_one_with_twice_the_batch(tmp_path, model, data, rank):
    kind = ["--full"] if rank is None else ["--lora-rank", str(rank)]
    launch(data, model, tmp_path / "two", *kind)
    settings = {"lora_rank": rank, "steps": 3, "batch_size": 2, "warmup": 1, "lr": 0.005, "ema_decay": 0.5}
    finetune(data, "paper", str(model), tmp_path / "one", resume=False, device=torch.device("cpu"), settings=settings)
    two, one = state.load(tmp_path / "two"), state.load(tmp_path / "one")
    assert two["step"] == one["step"] == 3
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    for kind in ("model", "ema"):
        assert two[kind].keys() == one[kind].keys()
        ours, whole = (torch.cat([s[kind][name].flatten() for name in sorted(s[kind])]) for s in (two, one))
        assert (ours - whole).norm() < 1e-4 * whole.norm()
