"""Text and images in one space: OpenCLIP, which picks the goal frame."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, cuda, nn

from genreward_fast.encoders.clip_network import ImageTower, TextTower
from genreward_fast.encoders.fingerprint import fingerprint
from genreward_fast.encoders.frozen import FrozenEncoder
from genreward_fast.errors import UserError
from genreward_fast.kernels.frames import FrameFormat
from genreward_fast.kernels.frames import frames as formatted

_KEPT_TEXTS = 16  # lists of sentences whose vectors are kept: a run asks for those of its few tasks again and again


class TextImageEncoder(FrozenEncoder):
    """OpenCLIP (arXiv 2212.07143): images and sentences to unit vectors whose dot product is their similarity.

    Frozen: eval mode, no gradients.

    Attributes:
        model: the library's model, image and text towers.
        image, text: its towers in fewer steps, with weights made from the model's; None where there is none for it.
        size: (height, width) in pixels that the image tower takes.
        format: how frames become that.
        fingerprint: sha256 over weights and configuration.
        note: "" for trained weights, else what every output must say about them.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Callable[[list[str]], Tensor],
        config: Mapping[str, Any],
        *,
        dtype: torch.dtype = torch.float32,
        batch: int = 64,
        note: str = "",
    ) -> None:
        """
        Args:
            model: as `open_clip.create_model` makes it, with its `visual.preprocess_cfg`; taken over, not copied.
            tokenizer: as `open_clip.get_tokenizer` makes it: P sentences to (P, context) int64.
            config: the model's open_clip configuration.
            batch: images or sentences per call at most.

        Raises:
            UserError: the model wants preprocessing that is not supported.
        """
        super().__init__()
        preprocess = dict(model.visual.preprocess_cfg)  # type: ignore[union-attr, arg-type]
        size = preprocess["size"]
        self.size: tuple[int, int] = (size, size) if isinstance(size, int) else (size[0], size[1])
        mode: str = preprocess["resize_mode"]
        if mode not in ("shortest", "squash"):
            raise UserError(f"open_clip resize_mode {mode}: not supported; use a model with shortest or squash")
        if mode == "shortest" and self.size[0] != self.size[1]:
            raise UserError(f"open_clip image size {self.size}: not square; use a model that takes square images")
        self.format = FrameFormat(
            self.size,
            tuple(preprocess["mean"]),
            tuple(preprocess["std"]),
            interpolation="bilinear" if preprocess["interpolation"] == "bilinear" else "bicubic",
            crop=mode == "shortest",
            bytes_between=True,
        )
        self.tokenizer = tokenizer
        self.batch = batch
        self.note = note
        self.fingerprint = fingerprint(model, {"model": dict(config), "preprocess": preprocess})
        self.image, self.text = ImageTower.of(model.visual, dtype), TextTower.of(model, dtype)
        self.model: Any = model.to(dtype)
        self._images, self._tokens = self.graphed(self._encode_frames), self.graphed(self._encode_tokens)
        self._together = self.graphed(self._encode_together)
        self._texts: dict[tuple[str, ...], Tensor] = {}
        self.freeze()

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(*size, 3): one frame."""
        return *self.size, 3

    @property
    def weights(self) -> nn.Module:
        """The image tower. Texts, a few in a goal, are PyTorch's at all times."""
        return self.model.visual

    def preprocess(self, frames: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 to (N, 3, *size) in the encoder's dtype on its device, channels last.

        Resized (the shorter side, then a centre crop; or squashed) as Pillow does it for open_clip's transform, with
        antialiasing and bytes after each pass; then scaled to [0, 1] and normalised.
        """
        return formatted(frames.to(self.device), self.format, self.dtype)

    def network(self, pixels: Tensor) -> Tensor:
        """(N, 3, *size) normalised to embeddings (N, D) of any length, in the encoder's dtype; one call, no split."""
        if self.image is None or torch.compiler.is_exporting():  # engines hold the model's own weights
            return self.model.visual(pixels)
        return self.image(pixels)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """(P, context) int64 to embeddings (P, D) of any length, in the encoder's dtype; one call, no split."""
        if self.text is None:
            return self.model.encode_text(tokens)
        return self.text(self.model.token_embedding(tokens), tokens.argmax(-1))

    @torch.no_grad()
    def encode_images(self, frames: Tensor) -> Tensor:
        """Unit vectors of frames.

        Args:
            frames: (N, H, W, 3) uint8, N ≥ 1, of any size.

        Returns:
            (N, D) float32.

        Raises:
            ValueError: another shape or dtype.
        """
        _check(frames)
        parts = [self._images(part) for part in frames.to(self.device).split(self.batch)]
        return torch.cat(parts)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors of sentences: P ≥ 1 of them to (P, D) float32. Longer ones than the model reads are cut off.

        The same list of sentences is encoded once.

        Raises:
            ValueError: no sentence.
        """
        if not texts or isinstance(texts, str):
            raise ValueError("texts must be a list of at least one sentence")
        key = tuple(texts)
        if key not in self._texts:
            if len(self._texts) == _KEPT_TEXTS:
                del self._texts[next(iter(self._texts))]
            tokens = self.tokenizer(list(texts)).to(self.device)
            self._texts[key] = torch.cat([self._tokens(part) for part in tokens.split(self.batch)])
        return self._texts[key].clone()

    @torch.no_grad()
    def encode_together(self, frames: Tensor, tokens: Tensor) -> Tensor:
        """Unit vectors of frames and of sentences, on CUDA both at the same time: one call, no split, nothing kept.

        Args:
            frames: (N, H, W, 3) uint8, N ≥ 1, of any size.
            tokens: (P, context) int64 of the tokenizer, P ≥ 1, on the encoder's device.

        Returns:
            (N + P, D) float32, the frames' first.

        Raises:
            ValueError: frames of another shape or dtype.
        """
        _check(frames)
        return self._together(frames.to(self.device), tokens)

    def forget(self) -> None:
        super().forget()
        self._texts.clear()

    def _encode_frames(self, frames: Tensor) -> Tensor:
        return nn.functional.normalize(self.encode(self.preprocess(frames)).float(), dim=-1)

    def _encode_tokens(self, tokens: Tensor) -> Tensor:
        return nn.functional.normalize(self.embed_tokens(tokens).float(), dim=-1)

    def _encode_together(self, frames: Tensor, tokens: Tensor) -> Tensor:
        if not frames.is_cuda:
            return torch.cat([self._encode_frames(frames), self._encode_tokens(tokens)])
        here, side = cuda.current_stream(frames.device), _side_stream(frames.device)
        side.wait_stream(here)
        tokens.record_stream(side)
        with cuda.stream(side):
            sentences = self._encode_tokens(tokens)
        pictures = self._encode_frames(frames)
        here.wait_stream(side)
        sentences.record_stream(here)
        return torch.cat([pictures, sentences])


def _check(frames: Tensor) -> None:
    """
    Raises:
        ValueError: no frames, or of another shape or dtype.
    """
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(f"frames must be (N, H, W, 3) uint8, N > 0, not {tuple(frames.shape)} {frames.dtype}")


@functools.cache
def _side_stream(device: torch.device) -> cuda.Stream:
    """Where sentences are encoded beside frames."""
    return cuda.Stream(device)
