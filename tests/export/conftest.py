import pytest
import torch

from genreward_fast.export.backends import backend, build_engine


class Encoder(torch.nn.Module):
    """uint8 frames (B, 3, 8, 12) to features (B, 5): convolution, norm, pooling and a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = torch.nn.GroupNorm(2, 8)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, frames):
        hidden = torch.nn.functional.silu(self.norm(self.conv(frames.float() / 127.5 - 1)))
        return self.head(hidden.mean(dim=(2, 3)))


@pytest.fixture(scope="session")
def make_encoder():
    def make(seed=0):
        torch.manual_seed(seed)
        return Encoder().eval()

    return make


@pytest.fixture(scope="session")
def make_frames():
    def make(batch, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, 256, (batch, 3, 8, 12), dtype=torch.uint8, generator=generator)

    return make


@pytest.fixture(scope="session", params=["aotinductor", "onnxruntime"])
def built(request, tmp_path_factory, make_encoder, make_frames):
    """(backend name, module, engine path, manifest), built once a backend for batches up to 9."""
    name = request.param
    if reason := backend(name).why_unavailable():
        pytest.skip(reason)
    path = tmp_path_factory.mktemp(name) / "encoder.engine"
    module = make_encoder()
    return name, module, path, build_engine(module, (make_frames(3),), path, name, max_batch=9)
