"""The benchmarks run, and their numbers are finite."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[3] / "benchmarks" / "goals"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options", "rows"),
    [
        ("bench_generate.py", ["--skip-compile", "--attention", "math", "--seconds", "0.1", "--steps", "4"], 7),
        ("bench_generate.py", ["--attention", "math", "--seconds", "0.1", "--steps", "4"], 8),
        ("bench_generate.py", ["--limit", "0"], 0),
        ("bench_finetune.py", ["--steps", "1", "--lora-rank", "4"], 1),
        ("bench_finetune.py", ["--steps", "1", "--full"], 1),
    ],
)
def test_the_benchmark_runs(tmp_path, script, options, rows):
    path = tmp_path / "result.json"
    command = [sys.executable, str(SCRIPTS / script), "--preset", "tiny", "--device", "cpu", "--json", str(path)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = json.loads(path.read_text())["results"] if rows else []
    assert len(results) == rows
    for row in results:
        assert row["what"] in done.stdout
        assert row["ms"] > 0
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, float))
    if script == "bench_generate.py":
        steps = [row for row in results if "steps" not in row["what"] and "decoding" not in row["what"]]
        assert all(row["difference"] < 1e-5 for row in steps)
        assert not any(row["error"] for row in results)
