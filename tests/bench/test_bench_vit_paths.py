"""The comparison of the image encoders' paths runs; what a CPU has of them gives the library's results."""

import json
import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "encoders" / "vit_paths.py"


def test_the_script_writes_every_network(tmp_path, capsys):
    main = runpy.run_path(str(SCRIPT))["main"]
    numbers = tmp_path / "numbers.json"
    assert main(["--preset", "tiny", "--device", "cpu", "--seconds", "0.01", "--out", str(numbers)]) == 0
    results = json.loads(numbers.read_text())["results"]
    assert [(result["what"].split(",")[0], result["path"]) for result in results] == [
        (name, "apart") for name in ("DINOv3", "DINOv3", "CLIP")
    ]
    assert all(result["ms"] > 0 for result in results)
    assert all(result["relative error"] < 1e-5 for result in results if result["what"].startswith("DINOv3"))
    assert len(capsys.readouterr().out.splitlines()) == len(results)
