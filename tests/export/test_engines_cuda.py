"""Engines on a GPU, of every backend that builds for it and can be captured in a CUDA graph."""

import pytest
import torch

from genreward_fast.errors import UserError
from genreward_fast.export.backends import backend, build_engine, load_engine, relative_rms_error
from genreward_fast.export.engine_file import read_manifest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module", params=["aotinductor", "tensorrt", "tensorrt-rtx"])
def on_gpu(request, dtype, tmp_path_factory):
    name = request.param
    if reason := backend(name).why_unavailable():
        pytest.skip(reason)
    if name == "tensorrt-rtx" and torch.cuda.get_device_capability()[0] == 9:
        pytest.skip("TensorRT for RTX does not run on Hopper")
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 16, 3), torch.nn.GroupNorm(4, 16), torch.nn.SiLU(), torch.nn.Conv2d(16, 4, 3)]
    module = torch.nn.Sequential(*layers).eval().to("cuda", dtype)
    path = tmp_path_factory.mktemp("cuda") / "layers.engine"
    build_engine(module, (torch.randn(4, 3, 16, 16, device="cuda", dtype=dtype),), path, name)
    return module, path, dtype


def test_every_batch_size_matches_the_module(on_gpu):
    module, path, dtype = on_gpu
    engine = load_engine(path, "cuda")
    manifest = read_manifest(path)
    assert manifest.compute_capability == "sm_{}{}".format(*torch.cuda.get_device_capability())
    assert manifest.gpu_name == torch.cuda.get_device_name()
    assert manifest.cuda == torch.version.cuda
    for batch in (1, 2, 5, 1024):
        x = torch.randn(batch, 3, 16, 16, device="cuda", dtype=dtype)
        with torch.no_grad():
            error = relative_rms_error(engine(x), module(x))
        assert error < (1e-5 if dtype == torch.float32 else 1e-2)


def test_a_call_can_be_captured_in_a_cuda_graph(on_gpu):
    module, path, dtype = on_gpu
    engine = load_engine(path, "cuda")
    x = torch.randn(4, 3, 16, 16, device="cuda", dtype=dtype)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        engine(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = engine(x)
    x.copy_(torch.randn_like(x))
    graph.replay()
    with torch.no_grad():
        assert relative_rms_error(output, module(x)) < (1e-5 if dtype == torch.float32 else 1e-2)


def test_a_gpu_engine_is_refused_on_the_cpu(on_gpu):
    with pytest.raises(UserError, match=r"layers\.engine: built for compute capability sm_\d+, and cpu is cpu"):
        load_engine(on_gpu[1], "cpu")
    with pytest.raises(UserError, match=r"on cuda:0, not \(1, 3, 16, 16\) .* on cpu"):
        load_engine(on_gpu[1], "cuda")(torch.zeros(1, 3, 16, 16, dtype=on_gpu[2]))


class Outer(torch.nn.Module):
    """(B,) to (B, 2^26): 32 rows are 2^31 elements."""

    def forward(self, x):
        return torch.cos(x[:, None] * (torch.arange(2**26, device=x.device) % 1024).to(x.dtype) / 512)


def test_indices_do_not_overflow_at_a_batch_larger_than_the_example(tmp_path):
    if torch.cuda.get_device_properties(0).total_memory < 12 * 2**30:
        pytest.skip("needs 12 GiB")
    x = torch.rand(33, device="cuda", dtype=torch.float16)
    build_engine(Outer().eval(), (x[:2],), tmp_path / "outer.engine", "aotinductor", max_batch=64)
    last = load_engine(tmp_path / "outer.engine", "cuda")(x)[32:]
    assert relative_rms_error(last, Outer()(x[32:])) < 1e-2
