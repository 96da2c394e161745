"""Two processes with one clip each are one process with two, whether each has all weights or a part of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from genreward_fast.goals.finetune import state
from genreward_fast.goals.finetune.start import finetune

SETTINGS = {
    "warmup": 1,
    "lr": 0.005,
    "ema_decay": 0.5,
    "validation_clips": 1,
    "validate_every": 2,
    "validation_steps": 2,
    "log_every": 1,
}


def launch(*arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def gradient_norms(out: Path) -> list[float]:
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return [event.value for event in events.Scalars("train/gradient_norm")]


def assert_same_run(two: Path, one: Path) -> None:
    a, b = state.load(two), state.load(one)
    assert a["step"] == b["step"] == 3
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    assert len(gradient_norms(two)) == 3
    assert gradient_norms(two) == pytest.approx(gradient_norms(one), rel=1e-4)
    records = [json.loads((out / "finetune.json").read_text()) for out in (two, one)]
    assert records[0]["validation_loss"] == pytest.approx(records[1]["validation_loss"], rel=1e-5)
    for kind in ("model", "ema"):
        assert a[kind].keys() == b[kind].keys()
        ours, whole = (torch.cat([run[kind][name].flatten() for name in sorted(run[kind])]) for run in (a, b))
        assert (ours - whole).norm() < 1e-4 * whole.norm()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [4, None])
def test_two_processes_are_one_with_twice_the_batch(tmp_path, model, data, rank):
    kind = ["--full"] if rank is None else ["--lora-rank", str(rank)]
    flags = [text for name, value in SETTINGS.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    launch(
        "-m", "genreward_fast.cli", "finetune", "--data", str(data), "--model", str(model),
        "--out", str(tmp_path / "two"), "--device", "cpu", "--batch-size", "1", "--steps", "3", *kind, *flags,
    )  # fmt: skip
    settings = SETTINGS | {"lora_rank": rank, "batch_size": 2, "steps": 3}
    finetune(data, "paper", str(model), tmp_path / "one", resume=False, device=torch.device("cpu"), settings=settings)
    assert_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [4, None])
def test_split_weights_are_trained_saved_and_resumed_as_whole_ones(tmp_path, model, data, rank):
    settings = SETTINGS | {"lora_rank": rank, "batch_size": 1}
    script = Path(__file__).with_name("sharded_finetune.py")
    launch(str(script), str(data), str(model), str(tmp_path / "two"), json.dumps(settings))
    for steps, resume in ((2, False), (3, True)):
        given = {"steps": steps} | ({} if resume else settings | {"batch_size": 2})
        out = tmp_path / "one"
        finetune(data, "paper", str(model), out, resume=resume, device=torch.device("cpu"), settings=given)
    assert_same_run(tmp_path / "two", tmp_path / "one")
