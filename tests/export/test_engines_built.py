"""Engines that the real backends build: right on every batch size, self-contained, strict about their inputs."""

import subprocess
import sys

import pytest
import torch

from genreward_fast.errors import UserError
from genreward_fast.export.backends import load_engine, relative_rms_error
from genreward_fast.export.engine import Engine, TensorSpec
from genreward_fast.export.engine_file import read_manifest
from genreward_fast.export.weights import weights_sha256


@pytest.fixture
def engine(built):
    _, module, path, _ = built
    return load_engine(path, "cpu", weights_sha256(module))


def test_manifest_describes_the_engine(built):
    name, module, path, manifest = built
    assert read_manifest(path) == manifest
    assert manifest.backend == name
    assert manifest.compute_capability == "cpu"
    assert manifest.weights_sha256 == weights_sha256(module)
    assert manifest.inputs == (TensorSpec((3, 3, 8, 12), "uint8", 0),)
    assert manifest.output == TensorSpec((3, 5), "float32", 0)
    assert manifest.torch_version == torch.__version__
    assert 0 <= manifest.fidelity < 1e-5


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 9])
def test_every_batch_size_matches_the_module(built, engine, make_frames, batch):
    frames = make_frames(batch, seed=batch)
    output = engine(frames)
    assert isinstance(engine, Engine)
    assert output.shape == (batch, 5)
    assert not output.requires_grad
    assert relative_rms_error(output, built[1](frames)) < 1e-5


def test_inputs_in_another_layout_are_read_right(built, engine, make_frames):
    frames = make_frames(4)
    expected = built[1](frames)
    channels_last = frames.to(memory_format=torch.channels_last)
    misaligned = torch.empty(frames.numel() + 1, dtype=torch.uint8)[1:].view(frames.shape).copy_(frames)
    assert misaligned.data_ptr() % 16
    assert relative_rms_error(engine(channels_last), expected) < 1e-5
    assert relative_rms_error(engine(misaligned), expected) < 1e-5


def test_outputs_of_two_calls_are_two_tensors(engine, make_frames):
    first = engine(make_frames(2, seed=1))
    kept = first.clone()
    engine(make_frames(2, seed=2))
    assert torch.equal(first, kept)


def test_unfit_inputs_are_refused(engine, make_frames):
    frames = make_frames(2)
    with pytest.raises(UserError, match=r"input 0 .* is \(batch, 3, 8, 12\) uint8 on cpu, not \(2, 3, 8, 11\)"):
        engine(frames[..., :11])
    with pytest.raises(UserError, match=r"uint8 on cpu, not .* float32"):
        engine(frames.float())
    with pytest.raises(UserError, match="takes 1 inputs, not 2"):
        engine(frames, frames)
    with pytest.raises(UserError, match=r"from 1 to 9, not \[10\]"):
        engine(make_frames(10))
    with pytest.raises(UserError, match=r"from 1 to 9, not \[0\]"):
        engine(frames[:0])


def test_other_weights_are_refused(built, make_encoder):
    with pytest.raises(UserError, match=f"{built[2].name}: built from other weights"):
        load_engine(built[2], "cpu", weights_sha256(make_encoder(seed=1)))


def test_a_fresh_process_runs_it_without_the_class(built, make_frames, tmp_path):
    torch.save({"frames": make_frames(5), "expected": built[1](make_frames(5)).detach()}, tmp_path / "case.pt")
    code = """
import sys, torch
from genreward_fast.export.backends import load_engine
case = torch.load(sys.argv[2], weights_only=True)
output = load_engine(sys.argv[1], "cpu")(case["frames"])
torch.testing.assert_close(output, case["expected"], rtol=1e-4, atol=1e-5)
print("same", tuple(output.shape))
"""
    command = [sys.executable, "-c", code, str(built[2]), str(tmp_path / "case.pt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
    assert done.stdout == "same (5, 5)\n", done.stderr
