from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from torch.nn import functional

from genreward_fast.encoders import video
from genreward_fast.encoders.fingerprint import fingerprint
from genreward_fast.encoders.video import VideoEncoder, read_vae
from genreward_fast.errors import UserError


def clips(batch: int, length: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, length, size, size, 3), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def encoder(vae_folder: Path) -> VideoEncoder:
    return VideoEncoder(read_vae(str(vae_folder)), size=32)


def test_is_the_library_s_mean(vae_folder: Path, encoder: VideoEncoder) -> None:
    frames = clips(2, 16)
    vae = AutoencoderKLCogVideoX.from_pretrained(vae_folder, low_cpu_mem_usage=False).eval()
    with torch.no_grad():
        posterior = vae.encode(frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1).latent_dist
    latent = encoder(frames)
    assert latent.shape == (2, 6, 4, 4, 4) == (2, *encoder.latent_shape(16))
    assert latent.dtype == torch.float32
    torch.testing.assert_close(latent, posterior.mean, atol=1e-5, rtol=1e-5)
    assert (latent - posterior.sample()).abs().max() > 0.1


def test_two_calls_are_equal_and_draw_nothing(encoder: VideoEncoder) -> None:
    frames = clips(1, 16)
    state = torch.random.get_rng_state()
    first, second = encoder(frames), encoder(frames)
    assert torch.equal(first, second)
    assert torch.equal(state, torch.random.get_rng_state())


def test_pixels_span_minus_one_to_one(encoder: VideoEncoder) -> None:
    frames = torch.tensor([0, 255], dtype=torch.uint8).view(1, 2, 1, 1, 1).expand(1, 2, 32, 32, 3)
    pixels = encoder.preprocess(frames)
    assert pixels.shape == (1, 3, 2, 32, 32)
    assert (pixels[:, :, 0] == -1).all()
    assert (pixels[:, :, 1] == 1).all()


@pytest.mark.parametrize(
    ("length", "latents"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3), (13, 4), (16, 4), (17, 5), (24, 6)]
)
def test_lengths(encoder: VideoEncoder, length: int, latents: int) -> None:
    assert encoder(clips(1, length)).shape == (1, *encoder.latent_shape(length))
    assert encoder.latent_shape(length)[1] == latents


def test_later_frames_do_not_change_earlier_latents(encoder: VideoEncoder) -> None:
    frames = clips(1, 16)
    torch.testing.assert_close(encoder(frames)[:, :, :2], encoder(frames[:, :8]), atol=1e-5, rtol=1e-5)


def test_big_batches_are_split(encoder: VideoEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = clips(5, 8)
    alone = torch.cat([encoder(frames[i : i + 1]) for i in range(5)])
    sizes = []
    encode = encoder.encoder.of_frames
    monkeypatch.setattr(video, "_PIXELS", {"cpu": 2 * 8 * 32**2})
    monkeypatch.setattr(encoder.encoder, "of_frames", lambda frames: sizes.append(len(frames)) or encode(frames))
    torch.testing.assert_close(encoder(frames), alone, atol=1e-5, rtol=1e-5)
    assert sizes == [2, 2, 1]


def test_one_clip_at_a_time_on_a_cpu(encoder: VideoEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    encode = encoder.encoder.of_frames
    monkeypatch.setattr(encoder.encoder, "of_frames", lambda frames: sizes.append(len(frames)) or encode(frames))
    encoder(clips(3, 4))
    assert sizes == [1, 1, 1]


def test_four_clips_a_call_at_full_size(encoder: VideoEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "size", 480)
    monkeypatch.setattr(encoder, "width", 128)
    assert encoder.max_batch(16) == 4


def test_no_call_indexes_more_than_32_bits(encoder: VideoEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    encode = encoder.encoder.of_frames
    monkeypatch.setattr(video, "_PIXELS", {"cpu": 10**9})
    monkeypatch.setattr(video, "_MAX_ELEMENTS", 2 * encoder.width * 10 * 34**2)
    monkeypatch.setattr(encoder.encoder, "of_frames", lambda frames: sizes.append(len(frames)) or encode(frames))
    encoder(clips(5, 8))
    assert sizes == [2, 2, 1]


@pytest.mark.parametrize("length", [1, 8, 17])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_float8_is_near(vae_folder: Path, encoder: VideoEncoder, device: str, length: int) -> None:
    near = VideoEncoder(read_vae(str(vae_folder)), size=32, float8=True).to(device)
    assert near.fingerprint == encoder.fingerprint
    frames = clips(2, length)
    expected, found = encoder(frames), near(frames).cpu()
    assert functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.98
    assert (found - expected).norm() > 1e-3 * expected.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_float8_is_the_same_on_cuda(vae_folder: Path) -> None:
    """But for sums in another order, which now and then round to another of so few numbers."""
    frames = clips(2, 16)
    cpu, cuda = (VideoEncoder(read_vae(str(vae_folder)), size=32, float8=True).to(place) for place in ("cpu", "cuda"))
    expected, plain = cpu(frames), VideoEncoder(read_vae(str(vae_folder)), size=32)(frames)
    assert (cuda(frames).cpu() - expected).norm() < 0.5 * (plain - expected).norm()


def test_bfloat16(vae_folder: Path, encoder: VideoEncoder) -> None:
    half = VideoEncoder(read_vae(str(vae_folder)), size=32, dtype=torch.bfloat16)
    frames = clips(1, 16)
    latent = half(frames)
    assert half.dtype == torch.bfloat16
    assert latent.dtype == torch.float32
    assert functional.cosine_similarity(latent.flatten(), encoder(frames).flatten(), dim=0) > 0.999
    assert half.fingerprint == encoder.fingerprint


def test_fingerprint_is_of_the_library_s_encoder(vae_folder: Path, encoder: VideoEncoder) -> None:
    """What was encoded with the library's own network keeps its name."""
    vae = read_vae(str(vae_folder))
    vae.decoder = None
    keys = ("act_fn", "norm_eps", "norm_num_groups", "temporal_compression_ratio")
    config = {key: vae.config[key] for key in keys} | {"size": 32}
    assert encoder.fingerprint == fingerprint(vae, config) == fingerprint(encoder.encoder, config)


def test_the_autoencoder_stays_whole(vae_folder: Path) -> None:
    vae = read_vae(str(vae_folder))
    VideoEncoder(vae, size=32, dtype=torch.bfloat16)
    assert vae.decoder is not None
    assert {parameter.dtype for parameter in vae.parameters()} == {torch.float32}


def test_frozen_and_without_decoder(encoder: VideoEncoder) -> None:
    assert not any("decoder" in name for name, _ in encoder.named_parameters())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    assert not encoder(clips(1, 4)).requires_grad


def test_no_clips(encoder: VideoEncoder) -> None:
    assert encoder(clips(0, 16)).shape == (0, 6, 4, 4, 4)


@pytest.mark.parametrize(
    "frames",
    [clips(1, 16).float(), clips(1, 16, size=40), clips(1, 16)[0], clips(1, 6), clips(1, 0)],
    ids=["float", "size", "rank", "6 frames", "0 frames"],
)
def test_refuses_other_inputs(encoder: VideoEncoder, frames: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="clip"):
        encoder(frames)


def test_refuses_sizes_that_do_not_divide(vae_folder: Path) -> None:
    with pytest.raises(UserError, match="multiple of 8"):
        VideoEncoder(read_vae(str(vae_folder)), size=36)


def test_reads_a_subfolder(vae_folder: Path, encoder: VideoEncoder, tmp_path: Path) -> None:
    shutil.copytree(vae_folder, tmp_path / "vae")
    assert VideoEncoder(read_vae(str(tmp_path)), size=32).fingerprint == encoder.fingerprint


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees(vae_folder: Path, encoder: VideoEncoder) -> None:
    frames = clips(2, 16)
    cuda = VideoEncoder(read_vae(str(vae_folder)), size=32).to("cuda")
    expected = encoder(frames)
    assert (cuda(frames).cpu() - expected).norm() <= 1e-5 * expected.norm()
    half = VideoEncoder(read_vae(str(vae_folder)), size=32, dtype=torch.bfloat16).to("cuda")
    assert functional.cosine_similarity(half(frames).cpu().flatten(), expected.flatten(), dim=0) >= 0.9999


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_graph(vae_folder: Path) -> None:
    """Nothing waits for the host, and a replay gives the same bits."""
    encoder = VideoEncoder(read_vae(str(vae_folder)), size=32, dtype=torch.bfloat16).to("cuda")
    frames = clips(2, 17).cuda()
    expected = encoder(frames)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        latent = encoder(frames)
    latent.zero_()
    graph.replay()
    assert torch.equal(latent, expected)
