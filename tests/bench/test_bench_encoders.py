"""The encoders' benchmark: its work is counted right, and it says what it must, also of contestants that fail."""

import json
import math

import pytest
import torch
from torch.nn import functional

from genreward_fast.bench import encoder_clip, encoder_dino, encoder_vae, encoders
from genreward_fast.bench.encoder_work import Request, Work, count_flops, measure, random_frames
from genreward_fast.bench.encoders import ENCODERS, timed
from genreward_fast.bench.timing import Limits
from genreward_fast.cli import main
from genreward_fast.encoders import architectures

BRIEF = Request("cpu", seconds=0, compiled=False)
CPU = torch.device("cpu")
LIMITS = Limits("CPU", gigabytes_per_second=10.0, tflops=0.1)
QUICK = ["--device", "cpu", "--seconds", "0.01", "--skip-compiled"]
SMALL = {
    "vae": ["--what", "vae", "--frames", "4", "--pixels", "16"],
    "dino": ["--what", "dino", "--batch", "2", "--pixels", "32"],
    "clip": ["--what", "clip", "--frames", "2", "--pixels", "80"],
}


@pytest.fixture
def quick_limits(monkeypatch):
    """The limits of the device are not measured."""
    monkeypatch.setattr(encoders, "measure_limits", lambda device, dtype: LIMITS)


def vae_products(config: dict, frames: int, side: int) -> int:
    """By hand: every convolution's multiplications, of one clip."""

    def conv(inputs: int, outputs: int, kernel: int) -> int:
        return kernel * inputs * outputs * frames * side * side

    widths = config["block_out_channels"]
    ratio, layers = config.get("temporal_compression_ratio", 4), config["layers_per_block"]
    total = conv(3, widths[0], 27)
    for level, (inputs, outputs) in enumerate(zip((widths[0], *widths), widths)):
        for layer in range(layers):
            first = inputs if layer == 0 else outputs
            total += conv(first, outputs, 27) + conv(outputs, outputs, 27)
            total += conv(first, outputs, 1) if first != outputs else 0
        if level + 1 < len(widths):
            frames //= 2 if 2**level < ratio else 1
            side //= 2
            total += conv(outputs, outputs, 9)
    last = widths[-1]
    return total + 4 * conv(last, last, 27) + conv(last, config["latent_channels"], 27)


def attention_products(tokens: int, width: int) -> int:
    """Queries, keys, values and output; scores and their sums."""
    return 4 * tokens * width * width + 2 * tokens * tokens * width


def last_attention_products(tokens: int, width: int) -> int:
    """Keys and values of all tokens; queries, output, scores and their sums of one."""
    return 2 * tokens * width * width + 2 * width * width + 2 * tokens * width


@pytest.mark.parametrize(("preset", "pixels"), [("tiny", 64), ("paper", 480), ("paper", 64)])
def test_flops_of_the_video_encoder(preset, pixels):
    config = architectures.VAE[preset]
    vae = architectures.AutoencoderKLCogVideoX
    with torch.device("meta"):
        library = vae(**config)
    clips = torch.empty(2, 16, pixels, pixels, 3, device="meta")
    counted = encoder_vae.clip_flops(library.config, clips)
    assert counted == 2 * 2 * vae_products(config, 16, pixels)
    # The library also computes variances, as many outputs of its last convolution again.
    last = config["block_out_channels"][-1] * config["latent_channels"] * 27 * 4 * (pixels // 8) ** 2
    theirs = count_flops(lambda: library.encode(torch.empty(2, 3, 16, pixels, pixels, device="meta")))
    assert theirs == counted + 2 * 2 * last


@pytest.mark.parametrize("preset", ["tiny", "paper"])
def test_flops_of_the_image_encoder(preset):
    config = architectures.DINO[preset]
    width, hidden, side = config["hidden_size"], config["intermediate_size"], config["image_size"]
    patches = (side // 16) ** 2
    tokens = patches + 1 + config["num_register_tokens"]
    layer = attention_products(tokens, width) + 3 * tokens * width * hidden
    expected = patches * 3 * 16 * 16 * width + (config["num_hidden_layers"] - 1) * layer
    expected += last_attention_products(tokens, width) + 3 * width * hidden
    frames = torch.empty(3, side, side, 3, device="meta")
    assert encoder_dino.frames_flops(architectures.DINOv3ViTConfig(**config), frames) == 2 * 3 * expected


@pytest.mark.parametrize("preset", ["tiny", "paper"])
def test_flops_of_the_text_and_image_encoder(preset):
    config = architectures.CLIP[preset]
    image, text = config["vision_cfg"], config["text_cfg"]
    patch = image["patch_size"]
    patches = (image["image_size"] // patch) ** 2
    tokens, width = patches + 1, image["width"]
    mlp = 8 * tokens * width * width
    of_image = patches * 3 * patch * patch * width + width * config["embed_dim"]
    of_image += (image["layers"] - 1) * (attention_products(tokens, width) + mlp)
    of_image += last_attention_products(tokens, width) + 8 * width * width
    length, width = text["context_length"], text["width"]
    of_text = text["layers"] * (attention_products(length, width) + 8 * length * width * width)
    of_text += width * config["embed_dim"]
    assert encoder_clip.goal_flops(config, 3, 5, length) == 2 * (3 * of_image + 5 * of_text)


@pytest.mark.parametrize("encoder", list(SMALL))
def test_the_command_writes_what_it_prints(encoder, tmp_path, capsys, request):
    if encoder != "vae":
        request.getfixturevalue("quick_limits")
    target = tmp_path / "numbers.json"
    assert main(["bench", *SMALL[encoder], *QUICK, "--json", str(target)]) == 0
    printed = capsys.readouterr().out
    written = json.loads(target.read_text())
    assert "untrained encoders" in printed.splitlines()[0]
    assert written["weights"] == "untrained encoders"
    assert written["limits"]["tflops"] > 0
    rows = {row["name"]: row for row in written["results"]}
    library = {"vae": "diffusers", "dino": "transformers", "clip": "open_clip"}[encoder]
    for name in (library, "ours"):
        row = rows[name]
        assert row["encoder"] == encoder
        assert row["p10 ms"] <= row["ms"] <= row["p90 ms"]
        assert row["TFLOP/s"] == pytest.approx(row["TFLOP"] / row["ms"] * 1e3)
        assert row["% of limit"] == pytest.approx(100 * row["limit ms"] / row["ms"])
        assert row["first s"] > 0
        assert f"{row['ms']:.4g}" in printed
    assert rows["ours"]["relative error"] < 1e-5
    assert rows["ours"]["cosine"] > 0.999999
    # Pillow's bytes are not torchvision's to the last one.
    assert rows[library]["relative error"] < (0.05 if encoder == "clip" else 1e-6)
    assert rows["ours, CUDA graph"]["error"] == "CUDA graphs need a GPU"
    assert "not timed: CUDA graphs need a GPU" in printed


def test_several_go_to_a_folder(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(encoders, "run", lambda *arguments: ran.append(arguments))
    sizes = ["--pixels", "64", "--pixels", "32", "--engine", "aotinductor"]
    assert main(["bench", "--what", "dino, clip", *sizes, "--device", "cpu", "--json", str(tmp_path)]) == 0
    request = Request("cpu", "tiny", seconds=1.0, pixels=(64, 32), engines=("aotinductor",))
    assert ran == [(name, request, tmp_path / f"{name}.json") for name in ("dino", "clip")]


@pytest.mark.slow
@pytest.mark.parametrize("encoder", list(SMALL))
def test_engines_take_part(encoder, tmp_path, quick_limits):
    pytest.importorskip("onnxruntime")
    target = tmp_path / "numbers.json"
    arguments = [*SMALL[encoder], *QUICK, "--engine", "onnxruntime", "--json", str(target)]
    assert main(["bench", *arguments]) == 0
    row = json.loads(target.read_text())["results"][-1]
    assert row["name"] == "ours, onnxruntime"
    assert row["relative error"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("encoder", list(SMALL))
def test_compiled_models_take_part(encoder, tmp_path, quick_limits):
    target = tmp_path / "numbers.json"
    arguments = [*SMALL[encoder], "--device", "cpu", "--seconds", "0.01", "--json", str(target)]
    assert main(["bench", *arguments]) == 0
    row = next(row for row in json.loads(target.read_text())["results"] if row["name"].endswith("torch.compile"))
    assert row["relative error"] < (0.05 if encoder == "clip" else 1e-4)


def work(**contestants) -> Work:
    return Work("vae", "1", 10**9, 10**6, lambda: torch.arange(1.0, 5.0), contestants)


def test_error_and_share_of_the_limit():
    value = torch.tensor([1.0, 2.0, 3.0, 5.0])
    row = measure(work(ours=lambda: lambda: value), "ours", torch.arange(1.0, 5.0), BRIEF, LIMITS)
    assert row["relative error"] == pytest.approx(1 / math.sqrt(30))
    assert row["cosine"] == pytest.approx(34 / math.sqrt(30 * 39))
    assert row["% of limit"] == pytest.approx(100 * 10 / row["ms"])  # 1 GFLOP at 0.1 TFLOP/s


def out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (out_of_memory, "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"),
        (lambda: out_of_memory, "OutOfMemoryError"),
        (lambda: lambda: torch.full((4,), math.nan), "not finite"),
        (lambda: lambda: torch.ones(5), "should be (4,)"),
    ],
)
def test_a_contestant_that_fails_is_a_line(build, says, capsys):
    rows = list(timed(work(bad=build, good=lambda: lambda: torch.arange(1.0, 5.0)), BRIEF, LIMITS))
    assert says in rows[0]["error"]
    assert "\n" not in rows[0]["error"]
    assert rows[1]["relative error"] == 0
    printed = capsys.readouterr().out
    assert f"not timed: {rows[0]['error']}" in printed


def test_a_reference_that_fails_is_a_line():
    failing = Work("vae", "1", 1, 1, out_of_memory, {"ours": lambda: lambda: torch.ones(1)})
    (row,) = timed(failing, BRIEF, LIMITS)
    assert row["error"].startswith("OutOfMemoryError")


def test_frames_differ_and_repeat():
    frames = random_frames(3, 40, 56, 3, device=CPU)
    assert frames.shape == (3, 40, 56, 3)
    assert frames.dtype == torch.uint8
    assert torch.equal(frames, random_frames(3, 40, 56, 3, device=CPU))
    values = frames.float().flatten(1)
    assert functional.cosine_similarity(values[0] - values[0].mean(), values[1] - values[1].mean(), dim=0) < 0.9


def test_weights_of_the_paper_s_sizes_are_random_and_it_says_so():
    assert Request("cpu", preset="paper").note == "random weights"
    assert set(ENCODERS) == set(SMALL)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--what", "vae,everything"], "'everything' is not one of"),
        (["--what", "vae", "--batch", "0"], "--batch must be at least 1, not 0"),
        (["--what", "vae", "--frames", "6"], "--frames 6: a clip has 4n or 4n + 1 frames"),
        (["--what", "vae", "--pixels", "60"], "--pixels 60: clips' frames have a multiple of 8"),
        (["--what", "dino", "--pixels", "60"], "--pixels 60: frames have a multiple of the patch size 16"),
        (["--what", "dino", "--frames", "4"], "--frames: not for dino"),
        (["--what", "dino,clip", "--batch", "4"], "--batch: not for clip"),
        (["--what", "vae", "--engine", "steam"], "steam: no such engine backend"),
        (["--what", "vae", "--preset", "huge"], "--preset"),
        (["--what", "vae", "--device", "cuda"], "sees no CUDA GPU"),
    ],
)
def test_bad_input_is_one_line(arguments, says, capsys):
    assert main(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.out == ""
