"""Embeddings of texts by the video model's T5, each computed once: the encoder is larger than the rest of the model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from genreward_fast.export.cache import cache_folder
from genreward_fast.files import atomic_path
from genreward_fast.goals.sampled_digest import sampled_sha256
from genreward_fast.goals.video_model import Pipeline, read_text_encoder


def default_cache() -> Path:
    """`text` in the user's cache folder."""
    return cache_folder() / "text"


class TextEmbeddings:
    """Embeds texts as diffusers' pipeline does, and keeps the embeddings in a folder.

    The encoder is loaded when a text is new, and freed again afterwards.
    """

    def __init__(
        self, folder: Path, *, length: int, dtype: torch.dtype, device: torch.device | str, cache: Path | None = None
    ) -> None:
        """
        Args:
            folder: of the model, in diffusers' layout.
            length: tokens of a text L, as the transformer's config has it.
            dtype, device: what the encoder runs in.
            cache: None for `default_cache()`.
        """
        self.folder, self.length, self.dtype, self.device = folder, length, dtype, torch.device(device)
        self.cache = cache or default_cache()

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(N, L, D) in `dtype` on the CPU.

        Raises:
            UserError: the encoder cannot be loaded.
        """
        known = {text: self._read(text) for text in dict.fromkeys(texts)}
        missing = [text for text, embedding in known.items() if embedding is None]
        if missing:
            for text, embedding in zip(missing, self._compute(missing)):
                known[text] = embedding
                with atomic_path(self._path(text)) as temporary:
                    save_file({"embedding": embedding.contiguous()}, temporary)
        return torch.stack([embedding for text in texts if (embedding := known[text]) is not None])

    def _compute(self, texts: Sequence[str]) -> Tensor:
        from diffusers import CogVideoXImageToVideoPipeline

        encoder, tokenizer = read_text_encoder(self.folder, self.dtype)
        pipeline: Pipeline = CogVideoXImageToVideoPipeline(
            tokenizer=tokenizer, text_encoder=encoder.to(self.device), vae=None, transformer=None, scheduler=None
        )
        with torch.no_grad():
            embeddings, _ = pipeline.encode_prompt(
                list(texts), do_classifier_free_guidance=False, max_sequence_length=self.length, device=self.device
            )
        return embeddings.cpu()

    def _read(self, text: str) -> Tensor | None:
        path = self._path(text)
        if not path.is_file():
            return None
        try:
            return load_file(path)["embedding"]
        except (SafetensorError, KeyError, OSError):  # damaged: it is computed again
            return None

    def _path(self, text: str) -> Path:
        key = json.dumps([self._encoder_digest, self.length, str(self.dtype), text])
        return self.cache / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"

    @cached_property
    def _encoder_digest(self) -> str:
        paths = [path for part in ("text_encoder", "tokenizer") for path in sorted((self.folder / part).glob("*"))]
        files = [(path.name, sampled_sha256(path)) for path in paths if path.is_file()]
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()
