"""The planner with a real, small video model (tests/training/unipi has the rest of it)."""

from __future__ import annotations

import json
import re

import pytest
import torch

from genreward_fast.cli import main
from genreward_fast.encoders.architectures import seeded
from genreward_fast.goals.generate import load_generator
from genreward_fast.goals.generation import GenerationConfig
from genreward_fast.goals.video_io import read_video
from genreward_fast.training.unipi.inverse_dynamics import FittedDynamics, InverseDynamics, NetworkConfig
from genreward_fast.training.unipi.videos import GeneratedVideos

TASK = "button-press"


@pytest.fixture
def dynamics(tmp_path):
    """Inverse dynamics that nothing was fitted to: which actions they choose does not matter here."""
    with seeded(0):
        network = InverseDynamics(NetworkConfig(4, 32, 32, max_gap=4, channels=2))
    record = {"camera": "corner", "rendering": "fast", "size": 48, "tasks": {TASK: 15.7}, "held_out": {}}
    FittedDynamics(network, record).save(tmp_path / "dynamics")
    return tmp_path / "dynamics"


def evaluate(dynamics, out, *flags):
    arguments = ["eval", "--policy", "unipi", "--task", TASK, "--inverse-dynamics", str(dynamics), "--out", str(out)]
    return main([*arguments, "--device", "cpu", "--denoising-steps", "2", *map(str, flags)])


def test_a_video_is_made_of_the_frame_and_the_text(model):
    generation = GenerationConfig(steps=2, seed=5)
    generator, embedded = load_generator("push the button", "tiny", str(model), None, generation, torch.device("cpu"))
    videos = GeneratedVideos(generator, embedded, 48)
    frame = torch.randint(0, 256, (48, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    one = videos(frame, 5)
    assert one.shape == (9, 32, 32, 3)
    assert one.dtype == torch.uint8
    ((_, expected),) = generator.generate(frame, *embedded)  # seed 5 is the config's
    assert torch.equal(one, expected)
    assert not torch.equal(videos(frame, 6), one)
    assert not torch.equal(videos(255 - frame, 5), one)


def test_episodes_are_evaluated_with_generated_plans(model, dynamics, tmp_path, capsys, monkeypatch):
    shapes = []
    real = GeneratedVideos.__call__

    def noted(self, frame, seed):
        shapes.append(tuple(frame.shape))
        return real(self, frame, seed)

    monkeypatch.setattr(GeneratedVideos, "__call__", noted)
    out = tmp_path / "out"
    assert evaluate(dynamics, out, "--video-model", model, "--episodes", 1, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    written = json.loads((out / "evaluation.json").read_text())
    how = written.pop("unipi")
    assert printed == written
    assert (printed["task"], printed["episodes"], printed["length_mean"]) == (TASK, 1, 256.0)
    assert how["plan_steps"] == 16  # the demonstrations' mean
    assert how["video"] == str(model)
    assert shapes == [(48, 48, 3)]  # one plan, from a frame such as the demonstrations show
    assert read_video(out / "plan.mp4")[0].shape == (9, 32, 32, 3)
    assert read_video(out / "evaluation.mp4")[0].shape == (257, 256, 256, 3)
    assert sorted(path.name for path in out.iterdir()) == ["evaluation.json", "evaluation.mp4", "plan.mp4"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--preset", "tiny"], "preset tiny: has no trained video model"),
        (["--video-model", "nowhere"], "nowhere"),
        (["--plan-steps", "40"], "--plan-steps 40: 9 frames leave gaps of up to 5 steps"),
        (["--plan-steps", "300"], "--plan-steps 300: an episode has 256"),
        (["--replan", "17"], "--replan 17: a plan is 16 steps long"),
        (["--denoising-steps", "1001"], "schedule has 1000"),
        (["--task", "reach"], "was fitted without reach.*--plan-steps"),
    ],
)
def test_what_cannot_be_planned_is_one_line(model, dynamics, tmp_path, capsys, flags, says):
    given = flags if {"--preset", "--video-model"} & set(flags) else ["--video-model", model, *flags]
    assert evaluate(dynamics, tmp_path / "out", *given) == 2
    error = capsys.readouterr().err.strip()
    assert re.search(says, error.splitlines()[-1]), error  # before it, the library's bar of loading
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_proportions_must_be_the_videos(model, dynamics, tmp_path, capsys):
    fitted = FittedDynamics.load(dynamics)
    wide = InverseDynamics(NetworkConfig(4, 32, 48, max_gap=4, channels=2))
    FittedDynamics(wide, fitted.record).save(tmp_path / "wide")
    assert evaluate(tmp_path / "wide", tmp_path / "out", "--video-model", model) == 2
    assert "the video is 32x32" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
