"""From an encoder to its engine, and from an engine's file to an encoder that uses it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from genreward_fast.encoders.frozen import FrozenEncoder
from genreward_fast.errors import UserError
from genreward_fast.export.backends import build_engine, load_engine
from genreward_fast.export.engine import Engine, Manifest, TensorSpec
from genreward_fast.export.engine_file import read_manifest
from genreward_fast.export.machine import compute_capability
from genreward_fast.export.weights import weights_sha256
from genreward_fast.kernels.precision import exact_products
from genreward_fast.kernels.triton_support import references_only

SUFFIX = ".engine"
MAX_BATCH = {"vae": 4, "dino": 64, "clip": 64}
"""Clips, or frames, that an engine takes at once unless told otherwise. More are split."""
_EXAMPLE_BATCH = {"vae": 2, "dino": 16, "clip": 16}


def engine_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """What an encoder is loaded in to become an engine; None for the dtype in which it runs without.

    On CUDA float16, not bfloat16: with three bits less, roundings alone move the video encoder's latents by more than
    an engine may differ (1.3e-2 where float16 has 1.4e-3). Too large values would be seen when the engine is compared.
    """
    return torch.float16 if device.type == "cuda" and name != "clip" else None


def fidelity_text(manifest: Manifest) -> str:
    """The error of an engine's output when it was built; for a GPU that was not there, that of its ONNX graph."""
    if manifest.fidelity is not None:
        return f"{manifest.fidelity:.1e}"
    return "not measured" if manifest.onnx_fidelity is None else f"{manifest.onnx_fidelity:.1e} (its graph)"


EncoderT = TypeVar("EncoderT", bound=FrozenEncoder)


class EncoderNetwork(nn.Module):
    """What an engine is made from: an encoder's `network`, in plain operations while its graph is recorded."""

    def __init__(self, encoder: FrozenEncoder):
        super().__init__()
        self.weights = encoder.weights
        self._network = encoder.network
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        with references_only() if torch.compiler.is_exporting() else nullcontext():
            return self._network(pixels).contiguous()


class EngineSource(Generic[EncoderT]):
    """An encoder as what engines are made from and checked against.

    Attributes:
        name: vae, dino or clip.
        encoder: as given, on the device that engines are for.
        weights: sha256 of the weights that an engine holds.
    """

    def __init__(self, name: str, encoder: EncoderT):
        self.name = name
        self.encoder = encoder
        self._network = EncoderNetwork(encoder)
        self.weights = weights_sha256(self._network)

    def file_name(self, backend: str, hardware: str | None = None) -> str:
        """What an engine's file is called: encoder, input, dtype, backend, hardware, and the weights' first digits.

        Args:
            hardware: "cpu", "sm_90" and the like; None for the encoder's device.
        """
        sides = "x".join(map(str, self.encoder.frame_shape[:-1]))
        dtype = str(self.encoder.dtype).removeprefix("torch.")
        place = hardware or compute_capability(self.encoder.device)
        return f"{self.name}-{sides}-{dtype}-{backend}-{place}-{self.weights[:8]}{SUFFIX}"

    def example(self, batch: int) -> Tensor:
        """A preprocessed batch of random frames, the same ones at every call."""
        generator = torch.Generator().manual_seed(0)
        shape = (batch, *self.encoder.frame_shape)
        return self.encoder.preprocess(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))

    def usual_example(self, max_batch: int | None = None) -> Tensor:
        """`example` of a batch as training has it, at most `max_batch`."""
        return self.example(min(_EXAMPLE_BATCH[self.name], max_batch or self.max_batch()))

    def max_batch(self) -> int:
        return MAX_BATCH[self.name]

    def build(
        self,
        path: Path,
        backend: str,
        max_batch: int | None = None,
        compute_capability: str | None = None,
        keep: bool = False,
    ) -> Manifest:
        """Builds an engine; see `build_engine`, also for what it raises.

        Args:
            compute_capability: of the GPU it is for, if that is not the encoder's device.
            keep: leave the same engine as it is, if it is there by now.
        """
        most = max_batch or self.max_batch()
        pixels = self.usual_example(most)
        with exact_products() if pixels.dtype == torch.float32 else nullcontext():
            return build_engine(
                self._network,
                (pixels,),
                path,
                backend,
                max_batch=most,
                compute_capability=compute_capability,
                keep=keep,
            )

    def load(self, path: Path) -> Engine:
        """The engine in a file, once it is known to fit this encoder.

        Raises:
            UserError: it takes another input, or is refused by `load_engine`.
        """
        if reason := self.why_unfit(read_manifest(path)):
            raise UserError(f"{path}: {reason}")
        return load_engine(path, self.encoder.device, self.weights)

    def why_unfit(self, manifest: Manifest) -> str | None:
        """None if an engine with this manifest takes this encoder's input, otherwise what is different."""
        pixels = self.example(1)
        if len(manifest.inputs) == 1 and manifest.inputs[0].fits(pixels):
            return None
        takes = ", ".join(map(str, manifest.inputs))
        return f"it takes {takes}, and the {self.name} encoder of this run gives {TensorSpec.of(pixels, 0)}"

    def use(self, path: Path) -> EncoderT:
        """The encoder, computing with the engine in a file from now on. Raises what `load` raises."""
        self.encoder.engine = self.load(path)
        return self.encoder
