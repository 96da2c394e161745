"""Real builds with TensorRT for RTX, for GPUs that are not here; one line for what cannot be built."""

import sys
from types import SimpleNamespace

import pytest
import torch

from genreward_fast.errors import UserError
from genreward_fast.export.backends import BACKENDS, build_engine, load_engine
from genreward_fast.export.engine_file import payload_file, read_manifest
from genreward_fast.export.onnx_fidelity import onnx_error
from genreward_fast.export.onnx_graph import onnx_sha256, weights_file, write_onnx
from genreward_fast.export.tensorrt_backend import TensorRTBackend
from genreward_fast.export.tensorrt_plan import Profile, parsed_graph, serialized_plan, target_capability
from genreward_fast.export.weights import weights_sha256

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")


@pytest.fixture
def trt():
    return pytest.importorskip("tensorrt_rtx", reason="needs the extra tensorrt-rtx")


class Add(torch.nn.Module):
    """Two inputs, one output."""

    def forward(self, x, y):
        return x + 2 * y


def test_an_engine_for_another_gpu(trt, make_encoder, make_frames, tmp_path):
    path, module = tmp_path / "encoder.engine", make_encoder()
    manifest = build_engine(module, (make_frames(3),), path, "tensorrt-rtx", max_batch=9, compute_capability="sm_89")
    assert read_manifest(path) == manifest
    assert manifest.backend_version == trt.__version__
    assert manifest.compute_capability == "sm_89"
    assert manifest.weights_sha256 == weights_sha256(module)
    assert manifest.fidelity is None
    assert 0 <= manifest.onnx_fidelity < 1e-5
    assert len(manifest.onnx_sha256) == 64
    assert manifest.onnx_sha256 != manifest.payload_sha256
    with payload_file(path, ".plan") as (_, payload):
        assert payload.stat().st_size > 10_000
    with pytest.raises(UserError, match=r"encoder\.engine: built for compute capability sm_89, and cpu is cpu"):
        load_engine(path, "cpu")


def test_a_graph_with_other_weights_is_refused(trt, make_encoder, make_frames, tmp_path, monkeypatch):
    def build(self, module, *arguments, original=TensorRTBackend.build):
        original(self, make_encoder(seed=1), *arguments)

    monkeypatch.setattr(TensorRTBackend, "build", build)
    options = {"max_batch": 9, "compute_capability": "sm_120"}
    with pytest.raises(UserError, match="not written: as an ONNX graph Encoder has a relative RMS error of"):
        build_engine(make_encoder(), (make_frames(3),), tmp_path / "encoder.engine", "tensorrt-rtx", **options)
    assert list(tmp_path.iterdir()) == []


def test_gpus_it_has_no_engines_for(trt, make_encoder, make_frames, tmp_path):
    path, given = tmp_path / "encoder.engine", (make_frames(3),)
    known = "sm_75, sm_80, sm_86, sm_89, sm_120"
    with pytest.raises(UserError, match=f"tensorrt-rtx has no engines for sm_90, only for {known}"):
        build_engine(make_encoder(), given, path, "tensorrt-rtx", compute_capability="sm_90")
    with pytest.raises(UserError, match=r"tensorrt-rtx has no engines for CPUs; .* or name a GPU"):
        build_engine(make_encoder(), given, path, "tensorrt-rtx")
    with pytest.raises(UserError, match="aotinductor compiles for the device of the inputs, which is not sm_89"):
        build_engine(make_encoder(), given, path, "aotinductor", compute_capability="sm_89")
    assert list(tmp_path.iterdir()) == []


def test_an_onnx_runtime_engine_is_for_any_gpu(make_encoder, make_frames, tmp_path):
    pytest.importorskip("onnxruntime")
    options = {"max_batch": 9, "compute_capability": "sm_90"}
    path = tmp_path / "encoder.engine"
    manifest = build_engine(make_encoder(), (make_frames(3),), path, "onnxruntime", **options)
    assert manifest.compute_capability == "sm_90"
    assert manifest.onnx_sha256 == manifest.payload_sha256
    assert (manifest.fidelity, manifest.onnx_fidelity < 1e-5) == (None, True)


def test_the_other_flavour_builds_for_the_gpu_in_the_machine_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="11.3"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"tensorrt builds only for the GPU in the machine; .* or use tensorrt-rtx"):
        BACKENDS["tensorrt"].targeting("sm_89")
    assert "PyTorch sees none" in BACKENDS["tensorrt"].why_unavailable()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert BACKENDS["tensorrt"].why_unavailable() is None
    assert BACKENDS["tensorrt"].version() == "11.3"


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    broken = TensorRTBackend("tensorrt-rtx", "broken_tensorrt_rtx")
    assert broken.why_unavailable() == "broken_tensorrt_rtx not installed; pip install 'genreward-fast[tensorrt-rtx]'"
    (tmp_path / "broken_tensorrt_rtx.py").write_text("raise RuntimeError('no libnvinfer\\nand more')\n")
    monkeypatch.syspath_prepend(tmp_path)
    reason = broken.why_unavailable()
    assert reason.startswith("broken_tensorrt_rtx cannot be imported (no libnvinfer); pip install")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_tensor_keeps_the_dtype_of_the_module(trt, tmp_path, dtype):
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.GroupNorm(2, 8), torch.nn.SiLU(), torch.nn.Conv2d(8, 4, 3)]
    module = torch.nn.Sequential(*layers).eval().to(dtype)
    x, graph = torch.randn(2, 3, 9, 7).to(dtype), tmp_path / "layers.onnx"
    write_onnx(module, (x,), graph, True, 5)
    assert (
        onnx_error(graph, module, [((given,), module(given)) for given in (x, torch.randn(5, 3, 9, 7).to(dtype))])
        < 1e-5
    )
    network = parsed_graph(trt, graph).network
    wanted = {torch.float16: trt.DataType.HALF, torch.bfloat16: trt.DataType.BF16}
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    convolutions = [layer for layer in layers if layer.type == trt.LayerType.CONVOLUTION]
    tensors = [network.get_input(0), network.get_output(0), *(layer.get_output(0) for layer in convolutions)]
    assert [tensor.dtype for tensor in tensors] == [wanted[dtype]] * 4
    assert len(serialized_plan(trt, graph, Profile(2, 5), target_capability(trt, "tensorrt-rtx", "sm_120"))) > 10_000


def test_several_inputs_and_a_fixed_batch(trt, tmp_path):
    graph, given = tmp_path / "add.onnx", (torch.randn(3, 4), torch.randn(3, 4))
    write_onnx(Add().eval(), given, graph, True, 8)
    network = parsed_graph(trt, graph).network
    assert [(network.get_input(i).name, tuple(network.get_input(i).shape)) for i in (0, 1)] == [
        ("x", (-1, 4)),
        ("y", (-1, 4)),
    ]
    assert serialized_plan(trt, graph, Profile(3, 8), trt.ComputeCapability.SM89)
    write_onnx(Add().eval(), given, graph, False, 8)
    assert tuple(parsed_graph(trt, graph).network.get_input(0).shape) == (3, 4)
    assert serialized_plan(trt, graph, None, trt.ComputeCapability.SM89)


def test_what_tensorrt_cannot_do_is_one_line(trt, tmp_path):
    class Flip(torch.nn.Module):
        def forward(self, x):
            return x.transpose(1, 2)

    frames = torch.zeros(2, 3, 4, dtype=torch.uint8)
    with pytest.raises(
        UserError, match="Flip cannot be built with tensorrt-rtx: TensorRT cannot do Transpose: "
    ) as told:
        build_engine(Flip().eval(), (frames,), tmp_path / "flip.engine", "tensorrt-rtx", compute_capability="sm_89")
    assert "UInt8" in str(told.value)
    assert "\n" not in str(told.value)


def test_weights_too_large_for_one_file_lie_beside_the_graph(trt, tmp_path, monkeypatch):
    module, x = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU()).eval(), torch.randn(3, 64)
    monkeypatch.setattr("genreward_fast.export.onnx_graph._MOST_WEIGHTS", 1000)
    graph = tmp_path / "linear.onnx"
    write_onnx(module, (x,), graph, True, 5)
    assert weights_file(graph).stat().st_size >= 64 * 64 * 4
    before = onnx_sha256(graph)
    assert onnx_error(graph, module, [((x,), module(x))]) < 1e-5
    assert serialized_plan(trt, graph, Profile(3, 5), trt.ComputeCapability.SM89)
    with open(weights_file(graph), "r+b") as file:
        file.write(b"\xff")
    assert onnx_sha256(graph) != before
    with pytest.raises(UserError, match="above 2 GiB"):
        build_engine(module, (x,), tmp_path / "linear.engine", "onnxruntime", max_batch=5)
