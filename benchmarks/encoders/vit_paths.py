"""The image encoders with activations inside their products and apart: milliseconds a call, and the error of each.

python benchmarks/encoders/vit_paths.py --out benchmarks/results/vit_paths.json

First some tiles of the product are timed, for each kind of activation; the networks are then timed with the best. What
is measured is written as it comes.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional

from genreward_fast.bench import encoder_clip, encoder_dino
from genreward_fast.bench.encoder_work import SEED, Request, random_frames
from genreward_fast.bench.timing import device_name, median_ms
from genreward_fast.encoders import architectures, transformer_blocks
from genreward_fast.encoders.clip import TextImageEncoder
from genreward_fast.encoders.frozen import FrozenEncoder
from genreward_fast.encoders.image import ImageEncoder
from genreward_fast.errors import UserError
from genreward_fast.export.backends import relative_rms_error
from genreward_fast.files import write_json
from genreward_fast.kernels import activated_linear as product
from genreward_fast.kernels.gated_silu import gated_silu
from genreward_fast.training.device import resolve_device

Tile = dict[str, int]
Result = dict[str, Any]
SHAPES = {True: (64 * 201, 384, 1536), False: (49 * 50, 768, 3072)}
"""Rows, inputs and results of DINOv3's layer for 64 pictures, which is gated, and of CLIP's for 49."""


def tiles(gated: bool) -> list[Tile]:
    """(rows, results, numbers a step, steps ahead, warps); a gated result is the sum of two products."""
    shapes = [(128, 128, 64, 3, 4), (128, 128, 64, 4, 4), (128, 256, 64, 3, 8), (128, 256, 64, 4, 8)]
    shapes += [(256, 128, 64, 3, 8), (64, 256, 64, 3, 4)]
    names = ("ROWS", "SIZE", "STEP", "AHEAD", "num_warps")
    return [dict(zip(names, (rows, size // (1 + gated), *rest))) for rows, size, *rest in shapes]


@contextmanager
def path(fused: bool, best: dict[bool, Tile]) -> Iterator[None]:
    """Inside it networks go this way whatever their batch."""
    with (
        patch.dict(transformer_blocks.FUSED_ROWS, dict.fromkeys(("gated", "plain"), 1 if fused else None)),
        patch.object(product, "_tile", lambda dtype, gated: best[gated]),
    ):
        yield


def time_tiles(gated: bool, request: Request, best: dict[bool, Tile]) -> Iterator[Result]:
    """The layer alone, apart and with each tile; the fastest is put into `best`."""
    rows, width, size = SHAPES[gated]
    generator = torch.Generator(request.place).manual_seed(SEED)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=request.place).to(request.dtype)

    outputs = 2 * size if gated else size
    x, weight, bias = draw(rows, width), draw(outputs, width) * width**-0.5, draw(outputs)
    activate = gated_silu if gated else functional.gelu
    expected = product.activated_linear_reference(x.float(), weight.float(), bias, gated=gated)

    def measured(name: str, call: Callable[[], Tensor]) -> Result:
        error = relative_rms_error(call(), expected)
        ms = median_ms(call, request.place, request.seconds)
        tflops = 2e-9 * rows * weight.numel() / ms
        return {"what": f"{rows}x{width} to {size}", "path": name, "ms": ms, "TFLOP/s": tflops, "relative error": error}

    yield measured("apart", lambda: activate(torch.addmm(bias, x, weight.t())))
    least = float("inf")
    for tile in tiles(gated):
        name = "fused, " + " ".join(map(str, tile.values()))
        with patch.object(product, "_tile", lambda dtype, gated, tile=tile: tile):
            try:
                result = measured(name, lambda: product.activated_linear(x, weight, bias, gated=gated))
            except Exception as failure:  # a tile too large for this GPU
                yield {"what": f"{rows}x{width} to {size}", "path": name, "failed": str(failure).splitlines()[0]}
                continue
        if result["ms"] < least:
            least, best[gated] = result["ms"], tile
        yield result


def time_network(
    what: str, encoder: FrozenEncoder, call: Callable[[], Tensor], expected: Tensor, request: Request, best: dict
) -> Iterator[Result]:
    """Both paths of an encoder as CUDA graphs; off CUDA there is one, run plainly."""
    encoder.graphs = request.place.type == "cuda"
    for fused in (False, True) if encoder.graphs else (False,):
        with path(fused, best):
            encoder.forget()
            error = relative_rms_error(call(), expected)
            ms = median_ms(call, request.place, request.seconds)
        yield {"what": what, "path": "fused" if fused else "apart", "ms": ms, "relative error": error}


def measure(request: Request) -> Iterator[Result]:
    best = {gated: product._tile(request.dtype, gated) for gated in SHAPES}
    if request.place.type == "cuda":
        for gated in SHAPES:
            yield from time_tiles(gated, request, best)
    vit = architectures.build_dino(request.preset, SEED).eval()
    images = ImageEncoder(copy.deepcopy(vit), size=encoder_dino.PIXELS[request.preset], dtype=request.dtype)
    images.to(request.place)
    for batch in encoder_dino.BATCH[request.preset]:
        frames = random_frames(batch, images.size, images.size, 3, device=request.place)
        expected = encoder_dino.reference(vit, request, frames)
        yield from time_network(f"DINOv3, {batch}", images, partial(images, frames), expected, request, best)
    model, tokenizer, config = architectures.build_clip(request.preset, SEED)
    model.eval()
    count, side = encoder_clip.FRAMES[request.preset], encoder_clip.PIXELS[request.preset]
    frames = random_frames(count, side, side, 3, device=request.place)
    tokens = tokenizer(encoder_clip.PROMPTS).to(request.place)
    expected = encoder_clip.reference(model, request, frames, tokens)
    both = TextImageEncoder(model, tokenizer, config, dtype=request.dtype).to(request.place)
    what = f"CLIP, {count} + {len(tokens)} prompts"
    yield from time_network(what, both, partial(both.encode_together, frames, tokens), expected, request, best)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N; a CPU has one path alone")
    parser.add_argument("--preset", choices=("paper", "tiny"), default="paper", help="whose architectures")
    parser.add_argument("--seconds", type=float, default=0.3, help="of measuring, per number")
    parser.add_argument("--out", type=Path, help="write the numbers to this file")
    options = parser.parse_args(arguments)
    try:
        request = Request(str(resolve_device(options.device)), options.preset, options.seconds)
        record: dict[str, Any] = {
            "device": device_name(request.place),
            "torch": torch.__version__,
            "dtype": str(request.dtype),
            "weights": request.note,
            "results": [],
        }
        with torch.no_grad():
            for result in measure(request):
                print(
                    "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else str(v) for k, v in result.items()), flush=True
                )
                record["results"].append(result)
                if options.out is not None:
                    write_json(options.out, record)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
