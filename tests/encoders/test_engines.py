"""The encoders as ONNX graphs, in ONNX Runtime and as plans of TensorRT for RTX, which need no GPU to be built."""

import resource
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from torch import nn

from genreward_fast.encoders.architectures import seeded
from genreward_fast.encoders.clip import TextImageEncoder
from genreward_fast.encoders.clip_weights import read_clip
from genreward_fast.encoders.image import ImageEncoder, read_dino
from genreward_fast.encoders.presets import EncoderConfig, load_video_encoder
from genreward_fast.encoders.video import VideoEncoder
from genreward_fast.export.onnx_fidelity import onnx_error
from genreward_fast.export.onnx_graph import write_onnx
from genreward_fast.export.tensorrt_plan import (
    Profile,
    optimization_profile,
    parsed_graph,
    serialized_plan,
    target_capability,
)

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Encode(nn.Module):
    """uint8 frames or clips to float32 features, without the splitting of batches that the encoders do themselves."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, frames):
        encoder = self.encoder
        pixels = encoder.preprocess(frames)
        return (encoder.encode(pixels) if hasattr(encoder, "encode") else encoder.model.encode_image(pixels)).float()


class Exported(NamedTuple):
    module: nn.Module
    frames: torch.Tensor
    graph: Path


MAX_BATCH = 5
# Halves time once, keeps norms apart for two chunks of frames, and has blocks with and without a shortcut.
TWO_LEVELS = {
    "block_out_channels": (4, 8),
    "down_block_types": ("CogVideoXDownBlock3D",) * 2,
    "up_block_types": ("CogVideoXUpBlock3D",) * 2,
    "temporal_compression_ratio": 2,
    "layers_per_block": 1,
    "latent_channels": 6,
    "norm_num_groups": 2,
}


def frames_of(shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def exported(encoder, shape, folder):
    module, frames = Encode(encoder).eval(), frames_of(shape)
    with torch.no_grad():
        module(frames)
    write_onnx(module, (frames,), folder / "encoder.onnx", True, MAX_BATCH)
    return Exported(module, frames, folder / "encoder.onnx")


@pytest.fixture(scope="module", params=["vae", "dino", "clip"])
def exported_encoder(request, tmp_path_factory):
    if request.param == "vae":
        with seeded(1):
            vae = AutoencoderKLCogVideoX(**TWO_LEVELS)
        encoder, shape = VideoEncoder(vae, size=16), (2, 16, 16, 16, 3)
    elif request.param == "dino":
        folder = request.getfixturevalue("dino_folder")
        encoder, shape = ImageEncoder(read_dino(str(folder)), size=32), (3, 32, 32, 3)
    else:
        folder = request.getfixturevalue("clip_folder")
        encoder, shape = TextImageEncoder(*read_clip(str(folder), "ViT-B-32")), (3, 44, 52, 3)
    return exported(encoder, shape, tmp_path_factory.mktemp(request.param))


def test_onnx_runtime_computes_what_the_encoder_does(exported_encoder):
    batches = [frames_of((batch, *exported_encoder.frames.shape[1:])) for batch in (1, 2, MAX_BATCH)]
    cases = [((frames,), exported_encoder.module(frames)) for frames in batches]
    assert onnx_error(exported_encoder.graph, exported_encoder.module, cases) < 1e-5


def test_tensorrt_reads_bytes_of_any_batch_and_gives_floats(exported_encoder):
    trt = pytest.importorskip("tensorrt_rtx")
    builder, network, *_ = parsed_graph(trt, exported_encoder.graph)
    assert (network.num_inputs, network.num_outputs) == (1, 1)
    frames, output = network.get_input(0), network.get_output(0)
    assert frames.name == "frames"
    assert (frames.dtype, tuple(frames.shape)) == (trt.DataType.UINT8, (-1, *exported_encoder.frames.shape[1:]))
    expected = exported_encoder.module(exported_encoder.frames)
    assert (output.dtype, tuple(output.shape)) == (trt.DataType.FLOAT, (-1, *expected.shape[1:]))
    range_of = optimization_profile(builder, network, Profile(2, MAX_BATCH)).get_shape("frames")
    assert [tuple(shape) for shape in range_of] == [(n, *exported_encoder.frames.shape[1:]) for n in (1, 2, MAX_BATCH)]


def test_tensorrt_builds_a_plan(exported_encoder):
    trt = pytest.importorskip("tensorrt_rtx")
    plan = serialized_plan(
        trt, exported_encoder.graph, Profile(2, MAX_BATCH), target_capability(trt, "tensorrt-rtx", "sm_89")
    )
    assert len(plan) > 10_000


@pytest.mark.slow
def test_the_full_video_encoder_builds_in_16_gib(tmp_path):
    trt = pytest.importorskip("tensorrt_rtx")
    config = EncoderConfig(preset="paper", weights="random")
    module = Encode(load_video_encoder(config, dtype=torch.float16)).eval()
    graph = tmp_path / "vae.onnx"
    write_onnx(module, (frames_of((1, 16, 480, 480, 3)),), graph, True, 4)
    network = parsed_graph(trt, graph).network
    assert tuple(network.get_input(0).shape) == (-1, 16, 480, 480, 3)
    assert tuple(network.get_output(0).shape) == (-1, 16, 4, 60, 60)
    del network
    plan = serialized_plan(trt, graph, Profile(1, 4), trt.ComputeCapability.SM89)
    weights = sum(parameter.nbytes for parameter in module.parameters())
    assert weights <= len(plan) < 2 * weights
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 16 * 2**20  # in KiB
