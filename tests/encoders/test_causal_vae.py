"""The video encoder's network beside the library's, which runs over chunks of eight frames one after another."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor, nn
from torch.nn import functional

from genreward_fast.encoders.architectures import seeded
from genreward_fast.encoders.causal_vae import CausalConv, CausalVideoEncoder, ResnetBlock, Sum, chunk_lengths
from genreward_fast.encoders.video import read_vae
from genreward_fast.errors import UserError
from genreward_fast.export.program import export_program
from genreward_fast.kernels.triton_support import INTERPRETED

LENGTHS = [1, 4, 5, 8, 9, 13, 16, 17, 24, 49]
CONFIGS: dict[str, dict[str, Any]] = {
    "four levels": {"block_out_channels": (4, 8, 8, 12), "layers_per_block": 1, "norm_num_groups": 2},
    "three levels": {
        "block_out_channels": (6, 6, 12),
        "layers_per_block": 2,
        "norm_num_groups": 3,
        "norm_eps": 1e-2,
        "temporal_compression_ratio": 2,
        "down_block_types": ("CogVideoXDownBlock3D",) * 3,
        "up_block_types": ("CogVideoXUpBlock3D",) * 3,
    },
    "eightfold in time": {
        "block_out_channels": (4, 4, 8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "temporal_compression_ratio": 8,
    },
}


@dataclass
class Case:
    library: AutoencoderKLCogVideoX
    ours: CausalVideoEncoder

    def means(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Ours and the library's."""
        with torch.no_grad():
            return self.ours(pixels), self.library.encode(pixels).latent_dist.mode()


def autoencoder(**config: Any) -> AutoencoderKLCogVideoX:
    """Random weights, in the norms and biases as well."""
    vae = AutoencoderKLCogVideoX(latent_channels=5, sample_height=16, sample_width=16, **config)
    for parameter in vae.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, parameter.mean().item(), 0.4)
    return vae.eval()


@pytest.fixture(scope="module", params=CONFIGS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Both with the weights of one folder."""
    folder = tmp_path_factory.mktemp("autoencoder")
    with seeded(4):
        autoencoder(**CONFIGS[request.param]).save_pretrained(folder)
    library = AutoencoderKLCogVideoX.from_pretrained(folder, low_cpu_mem_usage=False).eval()
    return Case(library, CausalVideoEncoder.of(read_vae(str(folder))))


def clip(batch: int, length: int, height: int = 16, width: int = 24) -> Tensor:
    """Frames that get brighter, so that statistics of other frames would be others."""
    seed = torch.seed() % 2**31
    print(f"seed {seed}")
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(batch, 3, length, height, width, generator=generator) * 2 - 1
    return noise * torch.linspace(0.2, 1, length).view(-1, 1, 1)


def relative_rms(value: Tensor, expected: Tensor) -> float:
    difference = value.double() - expected.double()
    return (difference.square().mean().sqrt() / expected.double().square().mean().sqrt()).item()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("batch", [1, 3])
def test_is_the_library_s_mean(case: Case, batch: int, length: int) -> None:
    ours, expected = case.means(clip(batch, length))
    assert ours.shape == expected.shape
    assert ours.dtype == expected.dtype
    assert relative_rms(ours, expected) < 1e-5


@pytest.mark.parametrize("length", [1, 4, 17])
def test_on_triton_is_the_library_s_mean(case: Case, length: int) -> None:
    if not INTERPRETED:
        pytest.skip("without TRITON_INTERPRET=1 a CPU has one path alone")
    ours, expected = case.means(clip(2, length))
    assert ours.shape == expected.shape
    assert relative_rms(ours, expected) < 1e-5


def test_in_the_interpreter(run_interpreted: Callable[[str, str, float], None]) -> None:
    run_interpreted(__file__, "on_triton", 300)


@pytest.mark.parametrize("length", [1, 9, 16])
def test_bfloat16(case: Case, length: int) -> None:
    half = CausalVideoEncoder.of(case.library, torch.bfloat16)
    pixels = clip(2, length)
    _, expected = case.means(pixels)
    with torch.no_grad():
        ours = half(pixels.bfloat16())
    assert ours.dtype == torch.bfloat16
    assert functional.cosine_similarity(ours.float().flatten(), expected.flatten(), dim=0) >= 0.9999


@pytest.mark.parametrize(
    ("length", "chunks"),
    [(1, [1]), (5, [5]), (8, [8]), (9, [9]), (13, [13]), (16, [8, 8]), (17, [9, 8]), (20, [12, 8]), (24, [8, 8, 8])],
)
def test_chunks(length: int, chunks: list[int]) -> None:
    assert chunk_lengths(length) == chunks


def test_a_frame_alone_is_three_times_the_same() -> None:
    conv = CausalConv(5, 7)
    frame = torch.randn(2, 1, 6, 9, 5)
    with torch.no_grad():
        flat, deep = conv(frame).value, conv(frame.expand(-1, 3, -1, -1, -1)).value
    assert flat.shape == deep.shape == (2, 1, 6, 9, 7)
    assert relative_rms(flat, deep) < 1e-6


def test_first_outputs_alone() -> None:
    conv = CausalConv(5, 7)
    frames = torch.randn(2, 4, 6, 9, 5)
    with torch.no_grad():
        assert relative_rms(conv(frames, outputs=3).value, conv(frames).value[..., :3]) < 1e-6


def test_maps_are_freed_once_read() -> None:
    """What a block has added up and normed is gone while its convolutions run."""
    block = ResnetBlock(4, 6, 2, 1e-6)
    x = Sum(torch.randn(1, 4, 6, 6, 4), None, torch.randn(1, 4, 6, 6, 4))
    read = [weakref.ref(x.value), weakref.ref(x.residual)]
    alive = []
    for conv in (block.conv1, block.conv2):
        conv.register_forward_pre_hook(lambda *_: alive.append([ref() is not None for ref in read]))
        conv.register_forward_hook(lambda _, __, y: read.append(weakref.ref(y.value)))
    with torch.no_grad():
        block(x, [4])
    assert alive == [[False, False], [False, False, False]]


def test_later_frames_change_nothing_before_their_chunk(case: Case) -> None:
    pixels = clip(1, 24)
    changed = pixels.clone()
    changed[:, :, 16:] += 1
    with torch.no_grad():
        before, after = case.ours(pixels), case.ours(changed)
    kept = 16 // case.ours.ratio
    assert torch.equal(before[:, :, :kept], after[:, :, :kept])
    assert (before[:, :, kept:] - after[:, :, kept:]).abs().max() > 1e-3


def test_exports_for_every_batch(case: Case) -> None:
    """Nothing in it depends on the batch, and no call is one that only a CPU has."""
    program = export_program(case.ours.requires_grad_(False), (clip(2, 9),), dynamic_batch=True, max_batch=4)
    assert not any("mkldnn" in str(node.target) for node in program.graph.nodes)
    for batch in (1, 3):
        pixels = clip(batch, 9)
        assert relative_rms(program.module()(pixels), case.ours(pixels)) < 1e-5


def test_weights_must_fit(case: Case) -> None:
    state = case.library.encoder.state_dict()
    fresh = CausalVideoEncoder(case.library.config)
    fresh.load_state_dict(state)
    name = "mid_block.resnets.1.conv2.conv.weight"
    for change, match in [
        ({key: value for key, value in state.items() if key != name}, "Missing key"),
        (state | {"conv_in.conv.scale": torch.zeros(1)}, "Unexpected key"),
        (state | {name: state[name][..., :2]}, "size mismatch"),
    ]:
        with pytest.raises(RuntimeError, match=match):
            fresh.load_state_dict(change)


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ({"act_fn": "gelu"}, "act_fn"),
        ({"use_quant_conv": True}, "quant_conv"),
        ({"temporal_compression_ratio": 16}, "temporal_compression_ratio 16"),
    ],
)
def test_refuses_what_it_does_not_compute(case: Case, setting: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        CausalVideoEncoder(dict(case.library.config) | setting)
