"""Which encoders a run uses, where their weights come from, and what must be said about them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from genreward_fast.errors import UserError

# The model libraries take seconds to import, so this is left to the functions that load something.
if TYPE_CHECKING:
    from genreward_fast.encoders.clip import TextImageEncoder
    from genreward_fast.encoders.engine_source import EncoderT
    from genreward_fast.encoders.image import ImageEncoder
    from genreward_fast.encoders.video import VideoEncoder

UNTRAINED = "untrained encoders"
RANDOM = "random weights"

_ENCODERS = ("vae", "dino", "clip")
_PAPER = {
    "vae": "zai-org/CogVideoX-5b-I2V",
    "dino": "facebook/dinov3-vits16plus-pretrain-lvd1689m",
    "clip": "ViT-B-32/laion2b_s34b_b79k",
}
SHIPPED = Path(__file__).resolve().parent.parent / "assets" / "tiny"
"""The tiny preset's trained weights, a folder for each encoder, as `genreward assets build` makes them."""

_CLIP_SIZE = {"paper": 480, "tiny": 128}
_FEATURE_SIZE = {"paper": 224, "tiny": 64}


@dataclass(frozen=True)
class EncoderConfig:
    """The encoders of a run.

    Attributes:
        preset: `paper` (CogVideoX-5B-I2V's autoencoder, DINOv3 ViT-S/16+, OpenCLIP ViT-B-32) or `tiny` (the same
            classes, small).
        weights: `pretrained` loads each encoder from its source: the hub's, or for tiny the weights that ship. `auto`
            is that, and `untrained` for those of tiny's that do not ship. `random` builds the preset's full-size
            architectures without loading anything, for benchmarks. `untrained` is the tiny preset's seeded initial
            weights. Encoders whose path is given are loaded from it.
        vae: hub id or local folder (with or without a subfolder vae) instead of the preset's autoencoder.
        dino: hub id or local folder instead of the preset's DINOv3.
        clip: hub id, local folder, checkpoint file or the library's NAME/TAG instead of the preset's OpenCLIP.
        clip_frame_size: side in pixels of the clips' frames; None for the preset's (480 or 128).
        clip_length: frames of a window's clip.
        image_size: side in pixels at which single frames are encoded; None for the preset's (224 or 64).
        vae_float8: make nearly all of the video encoder's products of float8 numbers (compute capability 8.9 or more to
            be fast): rewards change by what `genreward bench --what vae` says.
        weights_seed: of untrained and random weights. Not the run's seed: all runs share these weights.

    Raises:
        UserError: unknown names, or settings that contradict each other.
    """

    preset: str = "paper"
    weights: str = "auto"
    vae: str | None = None
    dino: str | None = None
    clip: str | None = None
    clip_frame_size: int | None = None
    clip_length: int = 16
    image_size: int | None = None
    vae_float8: bool = False
    weights_seed: int = 0

    def __post_init__(self) -> None:
        if self.preset not in _CLIP_SIZE:
            raise UserError(f"preset {self.preset!r}: no such preset; use one of: {', '.join(_CLIP_SIZE)}")
        if self.weights not in ("auto", "pretrained", "random", "untrained"):
            raise UserError(f"weights {self.weights!r}: use auto, pretrained, random or untrained")
        if self.weights == "untrained" and self.preset != "tiny":
            raise UserError("weights untrained: for the preset tiny only; use random to benchmark the full sizes")
        given = [name for name in _ENCODERS if getattr(self, name) is not None]
        if self.weights == "random" and given:
            raise UserError(f"weights random: contradicts --{given[0]}; leave one of them out")
        if self.clip_length < 1:
            raise UserError(f"clip length {self.clip_length}: must be at least 1")

    @property
    def clip_size(self) -> int:
        """Side in pixels of the square frames of a clip."""
        return self.clip_frame_size or _CLIP_SIZE[self.preset]

    @property
    def feature_size(self) -> int:
        """Side in pixels of the square frames that become features."""
        return self.image_size or _FEATURE_SIZE[self.preset]

    def source(self, encoder: str) -> str | None:
        """Where the weights of `encoder` (vae, dino, clip) come from; None if they are built, not loaded.

        Raises:
            UserError: trained weights are asked for and there are none.
        """
        given: str | None = getattr(self, encoder)
        if given is not None:
            return given
        if self.weights in ("random", "untrained"):
            return None
        source = _shipped(encoder) if self.preset == "tiny" else _PAPER[encoder]
        if source is None and self.weights == "pretrained":
            raise UserError(f"preset {self.preset}: has no trained weights; pass them with --{encoder} PATH")
        return source

    def note_of(self, encoder: str) -> str:
        """What every output made with `encoder` (vae, dino, clip) must say: "" if its weights are trained."""
        if self.source(encoder) is not None:
            return ""
        return RANDOM if self.weights == "random" else UNTRAINED

    @property
    def note(self) -> str:
        """What every output must say: "" if all three encoders have trained weights."""
        return next((note for note in map(self.note_of, _ENCODERS) if note), "")


def _shipped(encoder: str) -> str | None:
    folder = SHIPPED / encoder
    return str(folder) if folder.is_dir() else None


def default_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 on CUDA, float32 elsewhere."""
    return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32


def load_video_encoder(
    config: EncoderConfig, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> VideoEncoder:
    """The video encoder of `config`; `dtype` None is bfloat16 on CUDA, float32 elsewhere.

    Raises:
        UserError: its weights cannot be reached or used.
    """
    from genreward_fast.encoders import architectures
    from genreward_fast.encoders.video import VideoEncoder, read_vae

    source = config.source("vae")
    vae = architectures.build_vae(config.preset, config.weights_seed) if source is None else read_vae(source)
    encoder = VideoEncoder(
        vae,
        size=config.clip_size,
        clip_length=config.clip_length,
        dtype=dtype or default_dtype(device),
        float8=config.vae_float8,
        note=config.note_of("vae"),
    )
    return encoder.to(device)


def load_image_encoder(
    config: EncoderConfig, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> ImageEncoder:
    """The image encoder of `config`; `dtype` None is bfloat16 on CUDA, float32 elsewhere.

    Raises:
        UserError: its weights cannot be reached or used.
    """
    from genreward_fast.encoders import architectures
    from genreward_fast.encoders.image import ImageEncoder, read_dino

    source = config.source("dino")
    vit = architectures.build_dino(config.preset, config.weights_seed) if source is None else read_dino(source)
    encoder = ImageEncoder(
        vit, size=config.feature_size, dtype=dtype or default_dtype(device), note=config.note_of("dino")
    )
    return encoder.to(device)


def load_text_image_encoder(
    config: EncoderConfig, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> TextImageEncoder:
    """The text and image encoder of `config`; `dtype` None is float32: it runs once a goal, and close scores decide.

    Raises:
        UserError: its weights cannot be reached or used.
    """
    from genreward_fast.encoders import architectures
    from genreward_fast.encoders.clip import TextImageEncoder
    from genreward_fast.encoders.clip_weights import read_clip

    source = config.source("clip")
    if source is None:
        model, tokenizer, model_config = architectures.build_clip(config.preset, config.weights_seed)
    else:
        model, tokenizer, model_config = read_clip(source, architecture="ViT-B-32")
    encoder = TextImageEncoder(
        model, tokenizer, model_config, dtype=dtype or torch.float32, note=config.note_of("clip")
    )
    return encoder.to(device)


class Encoders:
    """The three encoders of a run, each loaded when it is first asked for.

    Attributes:
        config, device, engine: as given.
        note: what every output must say about the weights; "" if all are trained.
    """

    def __init__(
        self,
        config: EncoderConfig,
        device: torch.device | str = "cpu",
        engine: str = "torch",
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """
        Args:
            engine: what runs them: torch, auto, a backend's name or a path; see `encoders/engine_choice.py`. Asking for
                an encoder raises UserError if its engine cannot be had.
            say: takes lines about engines that are built or measured, which may take minutes.
        """
        self.config = config
        self.device = torch.device(device)
        self.engine = engine
        self.note = config.note
        self._say = say

    @functools.cached_property
    def video(self) -> VideoEncoder:
        return self._load("vae", load_video_encoder)

    @functools.cached_property
    def image(self) -> ImageEncoder:
        return self._load("dino", load_image_encoder)

    @functools.cached_property
    def text_image(self) -> TextImageEncoder:
        return self._load("clip", load_text_image_encoder)

    def fingerprints(self) -> dict[str, str]:
        """The fingerprints of the encoders loaded so far, under their names vae, dino and clip."""
        return {name: encoder.fingerprint for name, encoder in self._loaded().items()}

    def engine_notes(self) -> list[str]:
        """What runs the encoders loaded so far: a line for each that an engine computes for."""
        from genreward_fast.encoders.engine_source import fidelity_text

        engines = {name: encoder.engine for name, encoder in self._loaded().items()}
        return [
            f"{name} runs as an engine: {engine.name} {engine.manifest.backend_version}, "
            f"relative RMS error {fidelity_text(engine.manifest)}"
            for name, engine in engines.items()
            if engine is not None
        ]

    def _loaded(self) -> dict[str, Any]:
        properties = {"vae": "video", "dino": "image", "clip": "text_image"}
        return {name: vars(self)[key] for name, key in properties.items() if key in vars(self)}

    def _load(self, name: str, load: Callable[[EncoderConfig, torch.device, torch.dtype | None], EncoderT]) -> EncoderT:
        from genreward_fast.encoders.engine_choice import load_with_engine

        def load_as(dtype: torch.dtype | None) -> EncoderT:
            return load(self.config, self.device, dtype)

        return load_with_engine(name, load_as, self.device, self.engine, self._say)


@functools.cache
def _shared(config: EncoderConfig, device: str) -> Encoders:
    return Encoders(config, device)


def shared_encoders(config: EncoderConfig, device: torch.device | str = "cpu") -> Encoders:
    """The one `Encoders` that this process has for a configuration and a device, so that nothing is loaded twice."""
    return _shared(config, str(torch.device(device)))
