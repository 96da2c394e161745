"""An encoder at one shape of its inputs, the ways to run it, and what is measured of each."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from genreward_fast.bench.contestant import Unavailable
from genreward_fast.bench.timing import Limits, call_times
from genreward_fast.encoders.engine_source import EncoderNetwork
from genreward_fast.encoders.frozen import FrozenEncoder
from genreward_fast.encoders.presets import EncoderConfig, default_dtype
from genreward_fast.errors import UserError
from genreward_fast.export.backends import build_engine, load_engine, relative_rms_error
from genreward_fast.kernels.triton_support import references_only

Call = Callable[[], Tensor]
SEED = 0  # of weights and frames


@dataclass(frozen=True)
class Request:
    """What is to be timed.

    Attributes:
        device: "cpu", "cuda" or "cuda:N".
        preset: whose architectures, `paper` or `tiny`, with initial weights.
        seconds: how long to measure each number.
        batch, frames, pixels: sizes to go through instead of the encoder's own; () for those.
        compiled: time the libraries' models under torch.compile, too.
        engines: backends of `genreward_fast.export` whose engines are built and timed, too.
    """

    device: str
    preset: str = "paper"
    seconds: float = 1.0
    batch: tuple[int, ...] = ()
    frames: tuple[int, ...] = ()
    pixels: tuple[int, ...] = ()
    compiled: bool = True
    engines: tuple[str, ...] = ()

    @property
    def place(self) -> torch.device:
        return torch.device(self.device)

    @property
    def dtype(self) -> torch.dtype:
        """What everybody computes in: bfloat16 on CUDA, float32 elsewhere."""
        return default_dtype(self.device)

    @property
    def note(self) -> str:
        """What every output must say about the weights."""
        return EncoderConfig(preset=self.preset, weights="random" if self.preset == "paper" else "untrained").note


@dataclass(frozen=True)
class Work:
    """What all contestants are given, and what they must return.

    Attributes:
        encoder: as on the command line.
        shape: of the inputs, in words.
        flops: multiplications and additions of its matrix products and convolutions, one each.
        size: bytes that must be read and written: inputs, weights and outputs, once.
        reference: the library's own module in float32 on the same inputs.
        contestants: by name, what builds a call; all calls take the same inputs and return the same values.
    """

    encoder: str
    shape: str
    flops: int
    size: int
    reference: Call
    contestants: Mapping[str, Callable[[], Call]]


def count_flops(call: Callable[[], Any]) -> int:
    """Multiplications and additions of a call's matrix products and convolutions; nothing runs on the meta device."""
    with torch.no_grad(), references_only(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def least_bytes(module: nn.Module, dtype: torch.dtype, *tensors: Tensor) -> int:
    """Of a module's weights in `dtype`, and of tensors."""
    weights = sum(parameter.numel() for parameter in module.parameters()) * dtype.itemsize
    return weights + sum(tensor.nbytes for tensor in tensors)


def random_frames(*shape: int, device: torch.device) -> Tensor:
    """(*shape, H, W, 3) uint8: smooth colours under noise, so that neither a mean nor an edge is all there is."""
    generator = torch.Generator().manual_seed(SEED)
    *many, height, width, _ = shape
    coarse = torch.rand(*many, 3, 4, 4, generator=generator).view(-1, 3, 4, 4) * 191
    smooth = functional.interpolate(coarse, (height, width), mode="bilinear").permute(0, 2, 3, 1)
    noise = torch.randint(0, 64, shape, generator=generator, dtype=torch.uint8)
    return (smooth.reshape(shape).to(torch.uint8) + noise).to(device)


def engine_call(module: nn.Module, inputs: tuple[Tensor, ...], backend: str) -> Callable[..., Tensor]:
    """The module as an engine of `backend`, built for these inputs' shapes out of plain operations."""
    with tempfile.TemporaryDirectory(prefix="genreward-bench-") as folder:
        path = Path(folder) / "engine"
        with references_only():
            build_engine(module, inputs, path, backend, dynamic_batch=False)
        return load_engine(path, inputs[0].device)


@dataclass(frozen=True)
class Ours:
    """The ways to run one of our encoders; each makes it anew and gives the call.

    Attributes:
        make: the encoder, on its device.
        frames: uint8, as the encoder takes them, there as well.
    """

    make: Callable[[], FrozenEncoder]
    frames: Tensor

    def plain(self) -> Call:
        """Launch by launch."""
        encoder = self.make()
        encoder.graphs = False
        return lambda: encoder(self.frames)

    def graphed(self) -> Call:
        """As a CUDA graph. Raises Unavailable without a GPU."""
        needs_cuda(self.frames.device)
        encoder = self.make()
        encoder.graphs = True
        return lambda: encoder(self.frames)

    def engine(self, backend: str) -> Call:
        """With an engine in the network's place."""
        encoder = self.make()
        run = engine_call(EncoderNetwork(encoder), (encoder.preprocess(self.frames).contiguous(),), backend)
        return lambda: run(encoder.preprocess(self.frames)).float()

    def engines(self, backends: Sequence[str]) -> dict[str, Callable[[], Call]]:
        """`engine` for each of them, by the contestant's name."""
        return {f"ours, {backend}": partial(self.engine, backend) for backend in backends}


def needs_cuda(device: torch.device) -> None:
    """
    Raises:
        Unavailable: there are no CUDA graphs on this device.
    """
    if device.type != "cuda":
        raise Unavailable("CUDA graphs need a GPU")


def measure(work: Work, name: str, expected: Tensor, request: Request, limits: Limits) -> dict[str, Any]:
    """A contestant's numbers, or under "error" the reason in one line why there are none.

    Args:
        expected: what the reference returned.
    """
    result: dict[str, Any] = {"encoder": work.encoder, "shape": work.shape, "name": name}
    device = request.place
    _release(device, request.compiled)
    try:
        with torch.no_grad():
            return result | _numbers(work, work.contestants[name], expected, request.seconds, device, limits)
    except Exception as error:  # out of memory, a compiler's failure: whatever it is, the others are still timed
        return result | {"error": reason(error)}


def reason(error: Exception) -> str:
    """An error in one line."""
    text = str(error) if isinstance(error, (Unavailable, UserError)) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:300]


def _numbers(
    work: Work, build: Callable[[], Call], expected: Tensor, seconds: float, device: torch.device, limits: Limits
) -> dict[str, Any]:
    begin = time.perf_counter()
    call = build()
    call()
    _wait(device)
    first = time.perf_counter() - begin
    times = call_times(call, device, seconds)
    output = call().double()  # of a call that was timed: a replay, where graphs are recorded
    wanted = expected.double()
    error = relative_rms_error(output, wanted)
    if not error < torch.inf:
        raise Unavailable(f"its output {tuple(output.shape)} is not finite, or should be {tuple(wanted.shape)}")
    tenths = statistics.quantiles(times, n=10, method="inclusive")
    ms = statistics.median(times)
    numbers = {
        "ms": ms,
        "p10 ms": tenths[0],
        "p90 ms": tenths[-1],
        "TFLOP/s": work.flops / ms / 1e9,
        "% of limit": 100 * limits.milliseconds(work.size, work.flops) / ms,
        "relative error": error,
        "cosine": functional.cosine_similarity(output.flatten(), wanted.flatten(), dim=0).item(),
        "first s": first,
    }
    if device.type == "cuda":
        numbers["peak GB"] = torch.cuda.max_memory_reserved(device) / 1e9
    return numbers


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _release(device: torch.device, compiled: bool) -> None:
    """Frees what the contestant before has left, so that memory and compiled code belong to one contestant alone."""
    if compiled:
        torch.compiler.reset()  # which imports the compiler, if nobody has
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
