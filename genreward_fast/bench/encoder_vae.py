"""The video encoder's contestants: diffusers' module as its users call it, and ours."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from diffusers.video_processor import VideoProcessor
from torch import Tensor, nn

from genreward_fast.bench.contestant import Unavailable
from genreward_fast.bench.encoder_work import (
    SEED,
    Call,
    Ours,
    Request,
    Work,
    count_flops,
    least_bytes,
    random_frames,
)
from genreward_fast.encoders import architectures
from genreward_fast.encoders.causal_vae import CausalVideoEncoder
from genreward_fast.encoders.video import VideoEncoder
from genreward_fast.errors import UserError
from genreward_fast.kernels.precision import exact_products

FRAMES = 16
PIXELS = {"paper": (480, 256, 64), "tiny": (64,)}


def check(request: Request) -> None:
    """
    Raises:
        UserError: the encoder takes no such clips.
    """
    for _, frames, pixels in shapes(request):
        if frames % 4 > 1:
            raise UserError(f"--frames {frames}: a clip has 4n or 4n + 1 frames")
        if pixels % 8:
            raise UserError(f"--pixels {pixels}: clips' frames have a multiple of 8")


def shapes(request: Request) -> list[tuple[int, int, int]]:
    """Clips, frames of each, and pixels along their sides."""
    return list(product(request.batch or (1,), request.frames or (FRAMES,), request.pixels or PIXELS[request.preset]))


def works(request: Request) -> Iterator[Work]:
    """One for every size of clips."""
    autoencoder = library(request.preset)
    for batch, frames, pixels in shapes(request):
        yield clip_work(request, autoencoder, random_frames(batch, frames, pixels, pixels, 3, device=request.place))


def library(preset: str) -> Any:
    """The library's autoencoder with initial weights; type checkers do not know its attributes."""
    autoencoder: Any = architectures.build_vae(preset, SEED)
    autoencoder.decoder = None  # not used, and half of the memory
    return autoencoder.eval()


def clip_work(request: Request, autoencoder: Any, clips: Tensor) -> Work:
    """The encoder on clips (B, T, H, W, 3)."""
    size, length = clips.shape[2], clips.shape[1]

    def make(float8: bool = False) -> VideoEncoder:
        encoder = VideoEncoder(
            autoencoder, size=size, clip_length=length, dtype=request.dtype, float8=float8, note=request.note
        )
        return encoder.to(request.place)

    ours = Ours(make, clips)

    def float8() -> Call:
        if request.place.type != "cuda" or torch.cuda.get_device_capability(request.place) < (8, 9):
            raise Unavailable("products of float8 numbers need a GPU of compute capability 8.9 or more")
        return searched(Ours(lambda: make(float8=True), clips).graphed())

    contestants: dict[str, Callable[[], Call]] = {
        "diffusers": lambda: library_call(to_device(autoencoder, request), clips)
    }
    if request.compiled:
        contestants["diffusers, torch.compile"] = lambda: compiled_call(autoencoder, request, clips)
    contestants |= {
        "ours": ours.plain,
        "ours, CUDA graph": ours.graphed,
        "ours, CUDA graph, cuDNN searched": lambda: searched(ours.graphed()),
        "ours, CUDA graph, float8": float8,
    }
    contestants |= ours.engines(request.engines)
    return Work(
        encoder="vae",
        shape="×".join(map(str, clips.shape[:-1])),
        flops=clip_flops(autoencoder.config, clips),
        size=least_bytes(autoencoder.encoder, request.dtype, clips) + 4 * latent_count(autoencoder.config, clips),
        reference=lambda: reference(autoencoder, request, clips),
        contestants=contestants,
    )


def searched(call: Call) -> Call:
    """With cuDNN timing its algorithms for each new shape."""

    def run() -> Tensor:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True):
            return call()

    return run


def clip_flops(config: Any, clips: Tensor) -> int:
    """Of the latent means of clips (B, T, H, W, 3)."""
    batch, frames, height, width, colours = clips.shape
    with torch.device("meta"):
        encoder = CausalVideoEncoder(config)
        pixels = torch.empty(batch, colours, frames, height, width)
    return count_flops(lambda: encoder(pixels))


def latent_count(config: Any, clips: Tensor) -> int:
    """How many numbers the means of clips (B, T, H, W, 3) are."""
    batch, frames, height, width, _ = clips.shape
    side = 2 ** (len(config["block_out_channels"]) - 1)
    times = -(-frames // int(config["temporal_compression_ratio"]))
    return batch * config["latent_channels"] * times * (height // side) * (width // side)


def to_device(autoencoder: Any, request: Request) -> Any:
    """A copy in the dtype and on the device that are timed."""
    model = copy.deepcopy(autoencoder)
    return nn.Module.to(model, request.place, request.dtype)  # the library's own would warn of nothing


def compiled_call(autoencoder: Any, request: Request, clips: Tensor) -> Call:
    """With weights in channels-last memory, in which cuDNN's convolutions are faster."""
    model = to_device(autoencoder, request)
    channels_last(model.encoder)
    model.encoder.compile(dynamic=False)
    return library_call(model, clips)


def channels_last(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)


def library_call(model: Any, clips: Tensor) -> Call:
    """uint8 clips through the library's own preprocessing and `encode`, as its users write it."""
    pixels = library_pixels(model, clips)
    return lambda: model.encode(pixels()).latent_dist.mode().float()


def library_pixels(model: Any, clips: Tensor) -> Call:
    """The library's own preprocessing of clips (B, T, H, W, 3), on the device: to (B, 3, T, H, W)."""
    processor: Any = VideoProcessor(vae_scale_factor=2 ** (len(model.config.block_out_channels) - 1))
    return lambda: processor.preprocess_video(clips.permute(0, 1, 4, 2, 3) / 255).to(model.dtype)


def reference(autoencoder: Any, request: Request, clips: Tensor) -> Tensor:
    """The library's means in float32, without TF32."""
    model = copy.deepcopy(autoencoder)
    with torch.no_grad(), exact_products():
        return library_call(model.to(request.place), clips)()
