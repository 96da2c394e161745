"""The image encoder's contestants: transformers' DINOv3 as its users call it, and ours."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor
from transformers import DINOv3ViTImageProcessor, DINOv3ViTModel

from genreward_fast.bench.encoder_work import (
    SEED,
    Call,
    Ours,
    Request,
    Work,
    count_flops,
    least_bytes,
    needs_cuda,
    random_frames,
)
from genreward_fast.encoders import architectures
from genreward_fast.encoders.dino_network import ClassTokenNetwork
from genreward_fast.encoders.image import ImageEncoder
from genreward_fast.errors import UserError
from genreward_fast.kernels.precision import exact_products

BATCH = {"paper": (1, 16, 64), "tiny": (1, 4)}
PIXELS = {"paper": 224, "tiny": 64}


def check(request: Request) -> None:
    """
    Raises:
        UserError: the encoder takes no such frames.
    """
    if request.frames:
        raise UserError("--frames: not for dino, which takes single ones; use --batch")
    for pixels in request.pixels:
        if pixels % 16:
            raise UserError(f"--pixels {pixels}: frames have a multiple of the patch size 16")


def works(request: Request) -> Iterator[Work]:
    """One for every number and size of frames."""
    library = architectures.build_dino(request.preset, SEED).eval()
    for batch, pixels in product(request.batch or BATCH[request.preset], request.pixels or (PIXELS[request.preset],)):
        yield frames_work(request, library, random_frames(batch, pixels, pixels, 3, device=request.place))


def frames_work(request: Request, library: DINOv3ViTModel, frames: Tensor) -> Work:
    """The encoder on frames (N, H, W, 3), H = W."""
    size = frames.shape[1]

    def make() -> ImageEncoder:
        encoder = ImageEncoder(copy.deepcopy(library), size=size, dtype=request.dtype, note=request.note)
        return encoder.to(request.place)

    ours = Ours(make, frames)

    def eager() -> Call:
        return library_call(copy.deepcopy(library), request.place, request.dtype, frames)

    def compiled(**options: Any) -> Call:
        model: Any = copy.deepcopy(library)
        model.compile(dynamic=False, **options)
        return library_call(model, request.place, request.dtype, frames)

    def compiled_graph() -> Call:
        needs_cuda(request.place)
        return compiled(mode="reduce-overhead")

    contestants: dict[str, Callable[[], Call]] = {"transformers": eager}
    if request.compiled:
        contestants |= {
            "transformers, torch.compile": compiled,
            "transformers, torch.compile, CUDA graph": compiled_graph,
        }
    contestants |= {"ours": ours.plain, "ours, CUDA graph": ours.graphed} | ours.engines(request.engines)
    return Work(
        encoder="dino",
        shape="×".join(map(str, frames.shape[:-1])),
        flops=frames_flops(library.config, frames),
        size=least_bytes(library, request.dtype, frames) + 4 * len(frames) * library.config.hidden_size,
        reference=lambda: reference(library, request, frames),
        contestants=contestants,
    )


def frames_flops(config: Any, frames: Tensor) -> int:
    """Of the class tokens of frames (N, H, W, 3), H = W, and of no other token after the last block."""
    size = frames.shape[1]
    with torch.device("meta"):
        network = ClassTokenNetwork(DINOv3ViTModel(config), size, torch.float32)
        pixels = torch.empty(len(frames), 3, size, size)
    return count_flops(lambda: network(pixels))


def library_call(vit: Any, device: torch.device, dtype: torch.dtype, frames: Tensor) -> Call:
    """uint8 frames through the library's own preprocessing and model, as its users write it."""
    model = vit.to(device, dtype)
    size = frames.shape[1]
    processor: Any = DINOv3ViTImageProcessor(size={"height": size, "width": size})

    def call() -> Tensor:
        pixels = processor(images=list(frames.permute(0, 3, 1, 2)), return_tensors="pt")["pixel_values"]
        return model(pixel_values=pixels.to(dtype)).pooler_output.float()

    return call


def reference(library: DINOv3ViTModel, request: Request, frames: Tensor) -> Tensor:
    """The library's class tokens in float32, without TF32."""
    with torch.no_grad(), exact_products():
        return library_call(copy.deepcopy(library), request.place, torch.float32, frames)()
