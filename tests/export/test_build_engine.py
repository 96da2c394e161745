"""What `build_engine` refuses to write and `load_engine` to load, whatever the backend."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from genreward_fast.errors import UserError
from genreward_fast.export import backends
from genreward_fast.export.backends import available, backend, build_engine, load_engine, relative_rms_error
from genreward_fast.export.engine import CheckedEngine
from genreward_fast.export.engine_file import payload_file, write_engine_file
from genreward_fast.export.weights import weights_sha256


class Scale(torch.nn.Module):
    """x times a weight."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(2.0, dtype=dtype))

    def forward(self, x):
        return x * self.weight


class ScaleBackend:
    """Builds `Scale` alone, wrong by a factor of 1 + `error`."""

    name = "scale"
    suffix = ".json"
    has_host_code = True

    def __init__(self):
        self.error = 0.0
        self.reason = None
        self.installed = "1.0"

    def version(self):
        return self.installed

    def why_unavailable(self):
        return self.reason

    def build(self, module, example_inputs, path, dynamic_batch=True, max_batch=1024):
        if self.error == "crash":
            path.write_text("half a payl")
            raise RuntimeError("the compiler crashed\nwith a long trace")
        path.write_text(json.dumps(module.weight.item() * (1 + self.error)))

    def load(self, path, manifest, device):
        factor = json.loads(path.read_text())
        return CheckedEngine(self.name, manifest, device, lambda x: x * factor)


@pytest.fixture
def scale(monkeypatch):
    entry = ScaleBackend()
    monkeypatch.setitem(backends.BACKENDS, "scale", entry)
    return entry


X = torch.linspace(-1, 1, 12).reshape(4, 3)


def names(folder):
    return [file.name for file in folder.iterdir()]


def test_an_exact_engine_is_written_and_loaded(scale, tmp_path):
    module = Scale().eval()
    manifest = build_engine(module, (X,), tmp_path / "a" / "scale.engine", "scale")
    assert manifest.fidelity == 0
    assert manifest.max_batch == 1024
    engine = load_engine(tmp_path / "a" / "scale.engine", "cpu", weights_sha256(module))
    assert torch.equal(engine(X[:2]), 2 * X[:2])
    assert names(tmp_path / "a") == ["scale.engine"]


@pytest.mark.parametrize(
    ("dtype", "error", "written"),
    [
        (torch.float32, 5e-5, True),
        (torch.float32, 2e-4, False),
        (torch.float32, math.nan, False),
        (torch.bfloat16, 5e-3, True),
        (torch.float16, 2e-2, False),
    ],
)
def test_fidelity_is_measured_and_has_a_bar(scale, tmp_path, dtype, error, written):
    scale.error = error
    path = tmp_path / "scale.engine"
    module, x = Scale(dtype).eval(), X.to(dtype)
    if written:
        # bfloat16 rounds the engine's product too: up to 2^-9 of it.
        rounding = 2**-9 if dtype == torch.bfloat16 else 1e-6
        assert build_engine(module, (x,), path, "scale").fidelity == pytest.approx(error, abs=rounding)
    else:
        with pytest.raises(UserError, match=r"scale\.engine: not written: .* relative RMS error"):
            build_engine(module, (x,), path, "scale")
        assert names(tmp_path) == []


@pytest.mark.parametrize("error", ["crash", 0.5])
def test_a_failed_build_keeps_the_old_engine(scale, tmp_path, error):
    path = tmp_path / "scale.engine"
    build_engine(Scale().eval(), (X,), path, "scale")
    before = path.read_bytes()
    scale.error = error
    with pytest.raises(UserError, match="Scale") as caught:
        build_engine(Scale().eval(), (X,), path, "scale")
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["scale.engine"]


def test_engines_from_elsewhere_are_refused(scale, tmp_path):
    path = tmp_path / "scale.engine"
    module = Scale().eval()
    build_engine(module, (X,), path, "scale")
    with payload_file(path, ".json") as (manifest, payload):
        for change, reason in (
            ({"compute_capability": "sm_90"}, "built for compute capability sm_90, and cpu is cpu"),
            ({"backend_version": "0.9"}, "built with scale 0.9, and 1.0 is installed"),
            ({"cpu_features": ("x86_64", "avx9000")}, "built for a CPU with .*avx9000.*, which this one lacks"),
            ({"backend": "tpu"}, "built with tpu, which this version"),
        ):
            write_engine_file(path, replace(manifest, **change), payload)
            with pytest.raises(UserError, match=rf"scale\.engine: {reason}"):
                load_engine(path, "cpu", weights_sha256(module))
        write_engine_file(path, manifest, payload)
    load_engine(path, "cpu")
    with pytest.raises(UserError, match="other weights"):
        load_engine(path, "cpu", "0" * 64)
    with pytest.raises(UserError, match="nonsense: no such device"):
        load_engine(path, "nonsense")
    with pytest.raises(UserError, match="cuda:77: PyTorch sees"):
        load_engine(path, "cuda:77")


def test_unfit_modules_and_inputs_are_refused(scale, tmp_path):
    path = tmp_path / "scale.engine"

    def refused(message, module, *inputs, **options):
        with pytest.raises(UserError, match=message):
            build_engine(module.eval(), inputs, path, "scale", **options)
        assert names(tmp_path) == []

    class Wrapped(Scale):
        def forward(self, x):
            return {"tuple": (x,), "sum": x.sum(0)}[self.returns]

    with pytest.raises(UserError, match="Scale is in training mode"):
        build_engine(Scale(), (X,), path, "scale")
    wrapped = Wrapped()
    wrapped.returns = "tuple"
    refused("returns a tuple", wrapped, X)
    wrapped.returns = "sum"
    refused("axis 0 of the output of Wrapped is not the batch", wrapped, X)
    refused("one or more tensors", Scale())
    refused("one batch size from 1 to max_batch = 3", Scale(), X, max_batch=3)
    refused("one batch size", Scale(), torch.tensor(1.0))
    refused("Scale on the example inputs: ", Scale(), X, X)
    scale.reason = "it is broken today"
    refused("engine backend scale: it is broken today", Scale(), X)


def test_a_fixed_batch_is_fixed(scale, tmp_path):
    path = tmp_path / "scale.engine"
    manifest = build_engine(Scale().eval(), (X,), path, "scale", dynamic_batch=False)
    assert manifest.max_batch is None
    assert str(manifest.inputs[0]) == "(4, 3) float32"
    with pytest.raises(UserError, match=r"is \(4, 3\) float32"):
        load_engine(path, "cpu")(X[:2])


def test_registry_names_its_backends(scale, monkeypatch):
    assert backend("scale") is scale
    assert "scale" in available()
    scale.reason = "gone"
    assert "scale" not in available()
    with pytest.raises(UserError, match="tpu: no such engine backend; there are aotinductor, onnxruntime"):
        backend("tpu")


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O3")
    assert "no-such-compiler" in backend("aotinductor").why_unavailable()
    find_spec = backends.OnnxRuntimeBackend.why_unavailable.__globals__["importlib"].util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    reason = backend("onnxruntime").why_unavailable()
    assert "onnxscript" in reason
    assert "pip install onnx onnxscript onnxruntime" in reason


@pytest.mark.parametrize(
    ("value", "reference", "expected"),
    [([3.0, 0.0], [0.0, 4.0], 1.25), ([0.0], [0.0], 0.0), ([math.nan], [1.0], math.inf), ([1.0], [1.0, 1.0], math.inf)],
)
def test_relative_rms_error(value, reference, expected):
    assert relative_rms_error(torch.tensor(value), torch.tensor(reference)) == pytest.approx(expected)


@pytest.mark.slow
def test_two_processes_build_the_same_path(tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    code = """
import sys, torch
from genreward_fast.export.backends import build_engine
torch.manual_seed(int(sys.argv[2]))
module = torch.nn.Linear(3, 2).eval()
print(build_engine(module, (torch.randn(2, 3),), sys.argv[1], "onnxruntime").weights_sha256)
"""
    path = tmp_path / "linear.engine"
    commands = [[sys.executable, "-c", code, str(path), str(seed)] for seed in (0, 1)]
    builders = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands
    ]
    answers = [builder.communicate(timeout=300) for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0], answers
    digests = {answer[0].split()[-1] for answer in answers}
    engine = load_engine(path, "cpu")
    assert len(digests) == 2
    assert engine.manifest.weights_sha256 in digests
    assert engine(torch.ones(5, 3)).shape == (5, 2)
    assert names(tmp_path) == ["linear.engine"]
