import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "envs" / "bench_env.py"


@pytest.mark.slow
def test_the_benchmark_measures_every_part(tmp_path):
    options = ["--steps", "3", "--seconds", "0.1", "--workers", "1", "2", "--json", str(tmp_path / "env.json")]
    result = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "env.json").read_text())
    assert {"physics and reward", "scene update", "draw 64", "read back 480"} < set(report["parts_ms"])
    if importlib.util.find_spec("dm_control"):
        assert {"cheetah-run, plain: step and 64", "cheetah-run, all three: step and 64"} < set(report["parts_ms"])
    assert all(value > 0 for value in report["parts_ms"].values())
    assert [row["workers"] for row in report["throughput"]] == [1] * 4 + [2] * 4
    assert report["renderer"] in result.stdout
    assert report["machine"]
