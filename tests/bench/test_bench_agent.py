"""The agent's benchmark runs, says what it must, and outlives those that it compares."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from genreward_fast.bench import agent, contestant
from genreward_fast.bench.contestant import Spec
from genreward_fast.cli import main

ROOT = Path(__file__).parents[2]
SMALL = ["--device", "cpu", "--dtype", "float32", "--size", "tiny", "--seconds", "0.01"]
SMALL += ["--batch-size", "2", "--batch-length", "2", "--imagination", "2", "--envs", "2", "--train-ratio", "1"]


def test_it_writes_its_numbers_and_why_others_are_missing(tmp_path, capsys):
    target = tmp_path / "numbers.json"
    others = ["--r2dreamer", str(tmp_path), "--dreamerv3-torch", str(tmp_path), "--torchrl", str(tmp_path)]
    assert main(["bench", *SMALL, "--skip-environments", *others, "--json", str(target)]) == 0
    written, printed = json.loads(target.read_text()), capsys.readouterr().out
    assert written["device"] in printed
    assert written["tflops"] > 0
    ours, *peers = written["results"]
    assert ours["size"] == "tiny"
    assert ours["captured"] is False  # there are no CUDA graphs here
    assert ours["parameters"] == 686458
    for name in ("update ms", "act 1 ms", "act 4 ms", "act 16 ms", "steps/s"):
        assert ours[name] > 0, name
    assert 0 < ours["s to the first update"] < ours["s to the second"] < ours["s to the third"]
    assert ours["cold start s"] == ours["s to the first update"]
    assert ours["warm start s"] > 0
    assert "% of limit" not in ours  # its work was counted at another shape
    assert [peer["name"] for peer in peers] == ["r2dreamer", "dreamerv3-torch", "TorchRL"]
    for peer in peers:
        assert "give a checkout of the repository" in peer["error"]
    assert printed.count("not timed") == 3


@pytest.mark.slow
def test_it_trains_in_real_environments(tmp_path):
    target = tmp_path / "numbers.json"
    assert main(["bench", *SMALL, "--skip-cold-start", "--json", str(target)]) == 0
    assert json.loads(target.read_text())["results"][0]["steps/s with environments"] > 0


def test_share_of_the_limit():
    result = {"name": "ours, plain", "size": "12M", "update ms": 10.0}
    agent.add_share(result, Spec(), tflops=95.8)
    assert result["% of limit"] == pytest.approx(100.0)


def fake_contestant(monkeypatch, tmp_path, body: str) -> Spec:
    """A contestant whose module is `body`."""
    (tmp_path / "fake_contestant.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code = (
        "import sys; from genreward_fast.bench import contestant as c; "
        "c.ADAPTERS['fake'] = 'fake_contestant'; sys.exit(c.main())"
    )
    original = contestant.command

    def command(spec, target):
        head, *rest = original(spec, target)
        return [head, "-P", "-c", code, *rest[3:]]

    monkeypatch.setattr(agent, "command", command)
    return Spec(adapter="fake", device="cpu", seconds=0.01)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("def build(spec): raise RuntimeError('out of luck')", "RuntimeError: out of luck"),
        ("import no_such_package", "no_such_package"),
        ("import os\ndef build(spec): os._exit(7)", "ended with exit code 7"),
        ("import time\ndef build(spec): time.sleep(600)", "no update within 6 s"),
    ],
)
def test_a_contestant_that_fails_is_a_line(body, says, monkeypatch, tmp_path):
    spec = fake_contestant(monkeypatch, tmp_path, body)
    result = agent.timed("fake", spec, start=6.0)
    assert says in result["error"]
    assert result["name"] == "fake"


@pytest.mark.slow
def test_data_parallel_form_runs(tmp_path):
    target = tmp_path / "parallel.json"
    script = str(ROOT / "benchmarks" / "agent" / "bench_agent.py")
    launch = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *SMALL, "--json", str(target)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    weak, strong = json.loads(target.read_text())["results"]
    assert (weak["batch each"], strong["batch each"]) == (2, 1)
    assert weak["same parameters"]
    assert strong["same parameters"]
    assert weak["efficiency"] == pytest.approx(weak["alone ms"] / weak["update ms"])
    assert strong["efficiency"] == pytest.approx(strong["alone ms"] / strong["update ms"] / 2)
    assert done.stdout.count("efficiency") == 2  # rank 0 alone prints


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--what", "everything"], "--what"),
        (["--size", "13M"], "agent size '13M' is unknown"),
        (["--seconds", "-1"], "--seconds"),
        (["--envs", "0"], "--envs"),
        (["--batch-length", "1"], "batch_length"),
        (["--device", "cuda"], "sees no CUDA GPU"),
    ],
)
def test_bad_input_is_one_line(arguments, says, capsys):
    assert main(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.out == ""
