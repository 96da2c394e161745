"""The kernels' benchmarks run, and say what they must."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from genreward_fast.bench import fb

FOLDER = Path(__file__).parents[2] / "benchmarks" / "kernels"


# Each with its variants.
@pytest.mark.parametrize(
    ("name", "variants"),
    [
        ("latent_cosine", 3),
        ("fb_score", 3),
        ("column_sums", 2),
        ("rmsnorm_silu", 5),
        ("gru_gates", 4),
        ("latent_sample", 4),
        ("twohot", 6),
        ("lambda_return", 4),
        ("latent_kl", 4),
        ("policy_loss", 6),
        ("return_range", 2),
        ("loss_total", 2),
        ("continuation_loss", 4),
        ("laprop", 3),
        ("image_blocks", 2),
        ("image_level", 6),
        ("frames", 6),
        ("phase_norm_silu", 4),
        ("phase_weights", 4),
        ("phase_image_loss", 4),
        ("space_norm_silu", 4),
        ("policy_action", 2),
        ("actor_tail", 4),
        ("prior_sample", 4),
        ("rssm_observe", 3),
        ("rssm_observe_backward", 3),
        ("group_norm_silu", 4),
        ("time_pool", 2),
        ("shifted_conv", 3),
        ("frame_conv", 2),
        ("layer_norm", 2),
        ("gated_silu", 2),
        ("activated_linear", 3),
        ("rope", 2),
    ],
)
def test_benchmark_writes_its_numbers(name, variants, tmp_path, monkeypatch, capsys):
    target = tmp_path / "numbers.json"
    script = FOLDER / f"bench_{name}.py"
    monkeypatch.syspath_prepend(str(FOLDER))
    command = [str(script), "--device", "cpu", "--rows", "1", "2", "--seconds", "0.01", "--dtype", "float32"]
    monkeypatch.setattr(sys, "argv", [*command, "--json", str(target)])
    runpy.run_path(str(script), run_name="__main__")
    written = json.loads(target.read_text())
    assert written["op"] == name
    assert written["limits"]["device"] in capsys.readouterr().out
    assert len(written["results"]) == 2 * variants
    for result in written["results"]:
        assert result["ms"] > 0
        assert result["dtype"] == "float32"
        assert result["% of limit"] > 0
        error = result.get("max error", result.get("relative error"))
        assert error < 1e-4
    # The op itself comes first; the others are its peers, measured in the same run.
    assert [r["variant"] for r in written["results"]][:2] == [name, "reference"]


def test_fb_score_is_timed_with_other_tilings_on_demand(tmp_path):
    target = tmp_path / "numbers.json"
    fb.main(["--device", "cpu", "--rows", "3", "--seconds", "0.001", "--tune", "--json", str(target)])
    results = json.loads(target.read_text())["results"]
    assert len({result["variant"] for result in results}) == len(results) == 3 + len(fb.TRIALS)


def test_all_of_them_by_one_command(tmp_path, monkeypatch, capfd):
    monkeypatch.syspath_prepend(str(FOLDER))
    main = runpy.run_path(str(FOLDER / "run_all.py"))["main"]
    command = ["--folder", str(tmp_path), "--only", "column_sums", "return_range", "--"]
    assert main([*command, "--device", "cpu", "--rows", "1", "--seconds", "0.01", "--dtype", "float32"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kernel_column_sums.json", "kernel_return_range.json"]
    assert "2 of 2" in capfd.readouterr().out
    assert main([*command, "--device", "nowhere"]) == 1
    assert "failed: column_sums, return_range" in capfd.readouterr().err
    assert main(["--folder", str(tmp_path / "none")]) == 2


def test_every_benchmark_is_tested():
    tested = {values[0] for values in test_benchmark_writes_its_numbers.pytestmark[0].args[1]}
    assert tested == {path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py")}
