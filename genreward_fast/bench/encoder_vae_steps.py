"""The way from the library's video encoder to ours, one change after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from unittest.mock import patch

import torch
from torch import Tensor, nn

from genreward_fast.bench.encoder_vae import (
    channels_last,
    clip_work,
    library,
    library_call,
    library_pixels,
    searched,
    to_device,
)
from genreward_fast.bench.encoder_work import Call, Ours, Request, Work, random_frames
from genreward_fast.encoders import causal_vae
from genreward_fast.encoders.causal_vae import CHUNK
from genreward_fast.encoders.video import VideoEncoder
from genreward_fast.kernels.time_pool import time_pool_reference


class ChunkNorm(nn.Module):
    """A group norm with statistics of its own for each of `chunks` equal pieces of the frames: (B, C, T, H, W)."""

    def __init__(self, norm: nn.GroupNorm, chunks: int) -> None:
        super().__init__()
        self.norm, self.chunks = norm, chunks

    def forward(self, x: Tensor) -> Tensor:
        pieces = x.unflatten(2, (self.chunks, -1)).movedim(2, 1).flatten(0, 1)
        return self.norm(pieces).unflatten(0, (-1, self.chunks)).movedim(1, 2).flatten(2, 3)


def use_one_pass(encoder: nn.Module, chunks: int) -> None:
    """Makes the library's encoder exact for all frames at once: of the chunks it keeps the norms' statistics."""
    for module in list(encoder.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, ChunkNorm(child, chunks))


def steps_work(request: Request, batch: int, frames: int, pixels: int) -> Work:
    """Each contestant has the changes of those before it.

    Args:
        frames: a multiple of eight.
    """
    autoencoder = library(request.preset)
    clips = random_frames(batch, frames, pixels, pixels, 3, device=request.place)

    def one_pass(last: bool = False) -> Call:
        model = to_device(autoencoder, request)
        use_one_pass(model.encoder, frames // CHUNK)
        if last:
            channels_last(model.encoder)
        layout = torch.channels_last_3d if last else torch.contiguous_format
        read = library_pixels(model, clips)

        def call() -> Tensor:
            outputs, _ = model.encoder(read().contiguous(memory_format=layout))
            return outputs.chunk(2, 1)[0].float()  # the other half are variances

        return call

    def make() -> VideoEncoder:
        encoder = VideoEncoder(autoencoder, size=pixels, clip_length=frames, dtype=request.dtype, note=request.note)
        return encoder.to(request.place)

    ours = Ours(make, clips)

    def from_pixels() -> Call:
        """Ours without its own first convolution: bytes are scaled, and cuDNN goes on from there."""
        encoder = make()
        return lambda: encoder.encode(encoder.preprocess(clips)).float()

    def plain_pool() -> Call:
        call = from_pixels()

        def run() -> Tensor:
            with patch.object(causal_vae, "time_pool", time_pool_reference):
                return call()

        return run

    contestants: dict[str, Callable[[], Call]] = {
        "diffusers": lambda: library_call(to_device(autoencoder, request), clips),
        "one pass instead of chunks": one_pass,
        "channels-last memory": lambda: one_pass(last=True),
        "cuDNN searches its algorithms": lambda: searched(one_pass(last=True)),
        "norm, SiLU, sums and padding fused": lambda: searched(plain_pool()),
        "time pooling fused": lambda: searched(from_pixels()),
        "first convolution from bytes": lambda: searched(ours.plain()),
        "a CUDA graph": lambda: searched(ours.graphed()),
    }
    return replace(clip_work(request, autoencoder, clips), contestants=contestants)
