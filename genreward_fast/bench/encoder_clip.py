"""The text and image encoder's contestants: OpenCLIP as its users call it, and ours."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from genreward_fast.bench.encoder_work import (
    SEED,
    Call,
    Request,
    Work,
    count_flops,
    engine_call,
    least_bytes,
    needs_cuda,
    random_frames,
)
from genreward_fast.encoders import architectures
from genreward_fast.encoders.clip import TextImageEncoder
from genreward_fast.encoders.clip_network import ImageTower
from genreward_fast.errors import UserError
from genreward_fast.goals.selection import TEMPLATES
from genreward_fast.kernels.precision import exact_products

FRAMES = {"paper": 49, "tiny": 4}
PIXELS = {"paper": 480, "tiny": 96}
PROMPTS = [template.format("pick up the puck") for template in TEMPLATES]

Library = tuple[nn.Module, Callable[[list[str]], Tensor], dict[str, Any]]


class Towers(nn.Module):
    """Normalised pixels (N, 3, H, W) and tokens (P, L) to unit vectors (N + P, D)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        parts = self.model.encode_image(pixels), self.model.encode_text(tokens)
        return functional.normalize(torch.cat(parts).float(), dim=-1)


def check(request: Request) -> None:
    """
    Raises:
        UserError: `batch` is given.
    """
    if request.batch:
        raise UserError("--batch: not for clip, which takes the frames of one video; use --frames")


def works(request: Request) -> Iterator[Work]:
    """One for every number and size of frames; the prompts are always those with which a goal frame is picked."""
    library = architectures.build_clip(request.preset, SEED)
    library[0].eval()
    for count, pixels in product(
        request.frames or (FRAMES[request.preset],), request.pixels or (PIXELS[request.preset],)
    ):
        yield goal_work(request, library, random_frames(count, pixels, pixels, 3, device=request.place))


def goal_work(request: Request, library: Library, frames: Tensor) -> Work:
    """Both towers on frames (N, H, W, 3) and `PROMPTS`."""
    model, tokenizer, config = library
    tokens = tokenizer(PROMPTS).to(request.place)  # by the same tokenizer for everybody

    def ours() -> TextImageEncoder:
        model, tokenizer, config = copy.deepcopy(library)
        encoder = TextImageEncoder(model, tokenizer, config, dtype=request.dtype, note=request.note)
        return encoder.to(request.place)

    def plain() -> Call:
        encoder = ours()
        return lambda: encoder.encode_together(frames, tokens)

    def graphed() -> Call:
        needs_cuda(request.place)
        encoder = ours()
        encoder.graphs = True
        return lambda: encoder.encode_together(frames, tokens)

    def kept() -> Call:
        encoder = ours()
        return lambda: torch.cat([encoder.encode_images(frames), encoder.encode_text(PROMPTS)])

    def engine(backend: str) -> Call:
        encoder = ours()
        towers = Towers(encoder.model).eval()
        run = engine_call(towers, (encoder.preprocess(frames).contiguous(), tokens), backend)
        return lambda: run(encoder.preprocess(frames), tokens)

    def eager() -> Call:
        return library_call(copy.deepcopy(model), request, frames, tokens)

    def compiled(**options: Any) -> Call:
        fresh: Any = copy.deepcopy(model)
        for name in ("encode_image", "encode_text"):
            setattr(fresh, name, torch.compile(getattr(fresh, name), dynamic=False, **options))
        return library_call(fresh, request, frames, tokens)

    def compiled_graph() -> Call:
        needs_cuda(request.place)
        return compiled(mode="reduce-overhead")

    contestants: dict[str, Callable[[], Call]] = {"open_clip": eager}
    if request.compiled:
        contestants |= {
            "open_clip, torch.compile": compiled,
            "open_clip, torch.compile, CUDA graph": compiled_graph,
        }
    contestants |= {"ours": plain, "ours, CUDA graph": graphed, "ours, prompts kept": kept}
    contestants |= {f"ours, {backend}": partial(engine, backend) for backend in request.engines}
    return Work(
        encoder="clip",
        shape="×".join(map(str, frames.shape[:-1])) + f" + {len(tokens)} prompts",
        flops=goal_flops(config, len(frames), *tokens.shape),
        size=least_bytes(model, request.dtype, frames, tokens) + 4 * (len(frames) + len(tokens)) * config["embed_dim"],
        reference=lambda: reference(model, request, frames, tokens),
        contestants=contestants,
    )


def goal_flops(config: dict[str, Any], frames: int, prompts: int, length: int) -> int:
    """Of the vectors of N frames, without other tokens after the last block, and of prompts of `length` tokens."""
    size = config["vision_cfg"]["image_size"]
    with torch.device("meta"):
        model = open_clip.CLIP(**copy.deepcopy(config))
        image = ImageTower(model.visual, torch.float32)
        pixels, tokens = torch.empty(frames, 3, size, size), torch.empty(prompts, length, dtype=torch.long)
    return count_flops(lambda: image(pixels)) + count_flops(lambda: model.encode_text(tokens))


def library_call(model: Any, request: Request, frames: Tensor, tokens: Tensor) -> Call:
    """uint8 frames through the library's own steps, on the device instead of on Pillow's pictures, and its model."""
    model = model.to(request.place, request.dtype)
    resize, crop, *_, normalise = transform(model).transforms

    def call() -> Tensor:
        pixels = normalise(crop(resize(frames.permute(0, 3, 1, 2))) / 255).to(request.dtype)
        parts = model.encode_image(pixels, normalize=True).float(), model.encode_text(tokens, normalize=True).float()
        return torch.cat(parts)

    return call


def transform(model: Any) -> Any:
    """The library's own preprocessing of Pillow's pictures."""
    return image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)


def reference(model: Any, request: Request, frames: Tensor, tokens: Tensor) -> Tensor:
    """The library's unit vectors in float32, without TF32, of pictures that Pillow has resized."""
    pictures = torch.stack([transform(model)(Image.fromarray(frame.numpy())) for frame in frames.cpu()])
    fresh = copy.deepcopy(model).to(request.place)
    with torch.no_grad(), exact_products():
        image = fresh.encode_image(pictures.to(request.place), normalize=True)
        return torch.cat([image, fresh.encode_text(tokens, normalize=True)])
