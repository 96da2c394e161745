"""The video encoder's waterfall: each step computes the same, and the picture shows those that were timed."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from PIL import Image

from genreward_fast.bench import encoder_vae_steps, encoders
from genreward_fast.bench.encoder_work import Request
from genreward_fast.bench.timing import Limits
from genreward_fast.export.backends import relative_rms_error

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "encoders" / "waterfall_vae.py"
REQUEST = Request("cpu", "tiny", compiled=False)


@pytest.fixture(scope="module")
def work():
    return encoder_vae_steps.steps_work(REQUEST, 2, 16, 24)


@pytest.fixture(scope="module")
def expected(work):
    return work.reference()


@pytest.mark.parametrize(
    "step",
    [
        "diffusers",
        "one pass instead of chunks",
        "channels-last memory",
        "cuDNN searches its algorithms",
        "norm, SiLU, sums and padding fused",
        "time pooling fused",
        "first convolution from bytes",
    ],
)
def test_every_step_is_exact(step, work, expected):
    with torch.no_grad():
        assert relative_rms_error(work.contestants[step]()(), expected) < 1e-5


def test_statistics_of_the_whole_clip_would_show(work, expected, monkeypatch):
    monkeypatch.setattr(encoder_vae_steps, "use_one_pass", lambda encoder, chunks: None)
    with torch.no_grad():
        assert relative_rms_error(work.contestants["one pass instead of chunks"]()(), expected) > 1e-3


def test_the_script_writes_numbers_and_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(encoders, "measure_limits", lambda device, dtype: Limits("CPU", 10.0, 0.1))
    main = runpy.run_path(str(SCRIPT))["main"]
    numbers, picture = tmp_path / "numbers.json", tmp_path / "picture.png"
    sizes = ["--preset", "tiny", "--device", "cpu", "--frames", "8", "--pixels", "16", "--seconds", "0.01"]
    assert main([*sizes, "--json", str(numbers), "--picture", str(picture)]) == 0
    steps = json.loads(numbers.read_text())["results"]
    assert len(steps) == 8
    assert steps[-1] == {
        "encoder": "vae",
        "shape": "1×8×16×16",
        "name": "a CUDA graph",
        "error": "CUDA graphs need a GPU",
        "limit ms": steps[0]["limit ms"],
        "TFLOP": steps[0]["TFLOP"],
    }
    with Image.open(picture) as image:
        six = image.size
    record = json.loads(numbers.read_text())
    record["results"] = record["results"][:4]
    numbers.write_text(json.dumps(record))
    assert main(["--draw", str(numbers), "--picture", str(picture)]) == 0
    with Image.open(picture) as image:
        assert image.size[0] == six[0]
        assert image.size[1] < six[1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--frames", "12"], "--frames 12: must be a multiple of 8"),
        (["--pixels", "20"], "--pixels 20: must be a multiple of 8"),
        (["--draw", "nowhere.json"], "nowhere.json: no such file"),
        (["--device", "tpu"], "--device tpu"),
    ],
)
def test_bad_input_is_one_line(arguments, says, capsys):
    assert runpy.run_path(str(SCRIPT))["main"](arguments) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.out == ""
