"""The command line: help, one-line refusals with exit code 2, and nothing lost or half-written by them."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
import torch

from genreward_fast.cli import genreward, main


def refused(capsys, *arguments: str) -> str:
    """Runs a command that must be refused; its one line, after at most a line that says what it was doing."""
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 or (len(lines) == 2 and lines[0].startswith("no --goal")), captured.err
    assert lines[-1].startswith("genreward: ")
    return lines[-1]


@pytest.mark.parametrize("command", sorted(genreward.commands))
def test_help_names_every_option_with_a_text(command, capsys):
    from genreward_fast import cli

    with pytest.raises(SystemExit) as stop:
        cli.genreward.main([command, "--help"], prog_name="genreward")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for parameter in cli.genreward.commands[command].params:
        if isinstance(parameter, click.Option):
            assert parameter.opts[0] in text
            assert parameter.help, parameter.opts
    assert main([command, "--help"]) == 0


def test_help_of_what_is_fitted_names_every_option(capsys):
    for name, command in genreward.commands["fit"].commands.items():
        assert main(["fit", name, "--help"]) == 0
        text = capsys.readouterr().out
        for parameter in command.params:
            assert parameter.opts[0] in text
            assert parameter.help, parameter.opts


def test_help_loads_no_heavy_library():
    code = "import sys, genreward_fast.cli as c; c.main(['train', '--help']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["fly"], "No such command 'fly'"),
        (["train", "--steps", "many"], "'many' is not a valid integer"),
        (["train", "--frobnicate"], "--frobnicate"),
        (["train", "--credit", "later"], "'later' is not one of"),
        (["train", "--task", "pick-plaice"], "pick-place"),
        (["train", "--preset", "huge"], "--preset huge"),
        (["train", "--reward", "money"], "money"),
        (["train", "--steps", "-5"], "--steps must be at least 1, not -5"),
        (["train", "--size", "13M"], "12M"),
        (["train", "--batch-size", "0"], "batch_size"),
        (["train", "--batch-length", "1"], "batch_length is 1; it must be at least 2"),
        (["train", "--batch-size", "1000000000"], "GB are missing; lower --batch-size"),
        (["train", "--batch-length", "1000000000"], "GB are missing; lower --batch-size, --batch-length"),
        (["train", "--reward", "none", "--replay-capacity", "60"], "set its capacity to at least 66"),
        (["train", "--reward", "none", "--replay-capacity", "1000000000000"], "--replay-capacity"),
        (["train", "--minutes", "-1"], "--minutes"),
        (["train", "--device", "tpu"], "--device tpu"),
        (["train", "--device", "cuda:99"], "--device cuda:99"),
        (["train", "--engine", "steam"], "--engine steam: no such backend, file or folder"),
        (["train", "--engine", "/dev"], "--engine /dev: holds no engines"),
        (["train", "--window", "300"], "longer than an episode"),
        (["train", "--alpha", "-1"], "--alpha"),
        (["train", "--seed", str(2**64)], "--seed"),
        (["train", "--checkpoint-minutes", "nan"], "--checkpoint-minutes"),
        (["train", "--prefill", "5000", "--fb-steps", "5000"], "FB would never learn"),
        (["train", "--out", "/dev/null/run"], "/dev/null/run"),
        (["train", "--no-video", "--no-fb"], "--no-fb"),
        (["train", "--resume"], "--out"),
        (["train", "--resume", "--out", "nowhere"], "nowhere: holds no run"),
        (["train", "--goal", "nowhere"], "nowhere"),
        (["train", "--camera", "eye"], "corner"),
        (["train", "--vae", "nowhere"], "--vae"),
        (["eval", "--run", "nowhere"], "nowhere: holds no run"),
        (["eval", "--run", "nowhere", "--episodes", "0"], "--episodes must be at least 1"),
        (["goal", "--out", "g"], "--task"),
        (["goal", "--out", "g", "--task", "reach", "--video", "v.mp4"], "--task"),
        (["goal", "--out", "g", "--video", "v.mp4"], "--text"),
        (["goal", "--out", "g", "--video", "v.mp4", "--text", "reach"], "v.mp4"),
        (["goal", "--out", "g", "--task", "fly"], "fly"),
        (["export", "--out", "e"], "--backend"),
        (["export", "--out", "e", "--backend", "steam"], "steam: no such engine backend"),
        (["export", "--out", "e", "--backend", "onnxruntime", "--for", "ada"], "--for ada"),
        (["export", "--out", "e", "--backend", "onnxruntime", "--max-batch", "0"], "--max-batch"),
        (["export", "--out", "e", "--backend", "onnxruntime", "--preset", "paper"], "--vae"),
        (["export", "--out", "/dev/null", "--backend", "onnxruntime"], "/dev/null: is a file"),
        (["demos", "--tasks", "reach"], "--out"),
        (["demos", "--tasks", "fly", "--out", "d"], "fly"),
        (["demos", "--tasks", ",", "--out", "d"], "none is named"),
        (["demos", "--episodes", "0", "--out", "d"], "episodes 0"),
        (["demos", "--camera", "front", "--out", "d"], "corner"),
        (["demos", "--size", "33", "--out", "d"], "even"),
        (["demos", "--workers", "0", "--out", "d"], "workers 0"),
    ],
)
def test_bad_input_is_one_line(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if arguments[0] == "train" and not {"--resume", "--out"}.intersection(arguments):
        arguments = [*arguments, "--out", "run"]
    assert says in refused(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu(capsys, tmp_path):
    assert "sees no CUDA GPU" in refused(capsys, "train", "--device", "cuda", "--out", str(tmp_path / "run"))


def test_a_folder_that_holds_something_else_is_left_alone(capsys, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "thesis.tex" in refused(capsys, "train", "--out", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_corrupt_and_short_videos(capsys, tmp_path):
    from genreward_fast.goals.video_io import write_video

    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video at all" * 100)
    out = tmp_path / "goal"
    assert "broken.mp4" in refused(capsys, "goal", "--video", str(broken), "--text", "reach", "--out", str(out))
    short = tmp_path / "short.mp4"
    write_video(short, torch.zeros(1, 64, 64, 3, dtype=torch.uint8), 8)
    assert "short.mp4" in refused(capsys, "goal", "--video", str(short), "--text", "reach", "--out", str(out))
    assert not out.exists()


def test_doctor_reports_json(capsys):
    code = main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] == (code == 0)
    assert {"torch", "rendering", "GPU"} <= {check["name"] for check in report["checks"]}


def test_a_goal_from_a_video_and_from_an_expert(capsys, tmp_path):
    from genreward_fast.goals.video_io import write_video

    frames = (torch.rand(12, 72, 96, 3, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    write_video(tmp_path / "v.mp4", frames, 8)
    first, second = tmp_path / "first", tmp_path / "second"
    arguments = ["goal", "--video", str(tmp_path / "v.mp4"), "--text", "reach the mark", "--out"]
    assert main([*arguments, str(first), "--frame", "last"]) == 0
    assert "contact_sheet.png" in capsys.readouterr().out
    assert "first" in refused(capsys, *arguments, str(first))
    assert main(["goal", "--task", "reach-v3", "--out", str(second), "--device", "cpu"]) == 0
    assert "untrained encoders" in capsys.readouterr().out
    assert (second / "goal.json").exists()


def test_demonstrations_of_a_task(capsys, tmp_path):
    arguments = ["demos", "--tasks", "reach", "--episodes", "1", "--size", "32", "--out", str(tmp_path / "demos")]
    assert main(arguments) == 0
    assert "1 clips, tasks: 1" in capsys.readouterr().out
    assert "--resume" in refused(capsys, *arguments)
    assert main([*arguments, "--resume"]) == 0


def test_version(capsys):
    assert main(["--version"]) == 0
    project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())["project"]
    assert capsys.readouterr().out.strip() == project["version"]
