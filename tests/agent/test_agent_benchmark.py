"""The agent's benchmark runs, and says what it must."""

import json
import runpy
import sys
from pathlib import Path


def test_benchmark_writes_its_numbers(tmp_path, monkeypatch, capsys):
    script = Path(__file__).parents[2] / "benchmarks" / "agent" / "bench_agent.py"
    target = tmp_path / "numbers.json"
    sizes = ["--size", "tiny", "--batch-size", "2", "--batch-length", "2", "--imagination", "1", "--act", "1", "3"]
    command = [str(script), "--device", "cpu", "--dtype", "float32", "--seconds", "0.01", *sizes, "--json", str(target)]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(script), run_name="__main__")
    written = json.loads(target.read_text())
    assert written["device"] in capsys.readouterr().out
    assert written["tflops"] > 0
    (result,) = written["results"]
    assert result["size"] == "tiny"
    assert result["captured"] is False  # there are no CUDA graphs here
    assert result["update ms"] > 0
    assert result["act 1 ms"] > 0
    assert result["act 3 ms"] > 0
    assert 0 < result["s to the first update"] < result["s to the second"] < result["s to the third"]
    assert "% of limit" not in result
