"""Filling the cache of latents and text embeddings (`latent_cache.py` says what it holds)."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from diffusers import AutoencoderKLCogVideoX
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from genreward_fast.encoders.fingerprint import fingerprint
from genreward_fast.errors import RunFailed, UserError
from genreward_fast.files import atomic_path, write_json
from genreward_fast.goals.demo_set import Demo, DemoSet
from genreward_fast.goals.frames import to_size, uniform_indices
from genreward_fast.goals.latent_cache import FORMAT, INDEX, LatentCache, caption_path, clip_path
from genreward_fast.goals.progress import progress


def fill_latent_cache(
    demos: DemoSet,
    folder: str | Path,
    *,
    vae: AutoencoderKLCogVideoX,
    text_encoder: nn.Module,
    tokenizer: Callable[..., Any],
    frames: int = 49,
    height: int = 480,
    width: int = 720,
    max_sequence_length: int = 226,
    noisy_images: int = 4,
) -> LatentCache:
    """Encodes what the folder lacks. Clips that cannot be read are left to the end, and then named.

    Args:
        folder: files of other clips, encoders and sizes in it stay, and are found again when those are wanted again.
        vae: as the checkpoint's subfolder `vae` holds it, in eval mode, on the device and in the dtype to compute with.
        text_encoder: the checkpoint's T5 encoder, likewise.
        tokenizer: the checkpoint's.
        frames: of each clip: 4n + 1 for an autoencoder that compresses time by 4.
        height, width: of the frames, multiples of what the autoencoder compresses space by.
        max_sequence_length: tokens that a caption is padded or cut to; 226 is the pipeline's.
        noisy_images: draws of a first frame's noise (`noisy_first_frames`).

    Raises:
        UserError: the autoencoder cannot take clips of that shape, or videos cannot be read.
        RunFailed: no room on the disk, or too little memory. What was computed stays.
        ValueError: an encoder is in training mode.
    """
    folder = Path(folder)
    model: Any = vae  # the library gives its attributes to type checkers as unknown
    text_model: Any = text_encoder
    if model.training or text_model.training:
        raise ValueError("the encoders must be in eval mode: dropout would be cached")
    _check_shape(model, frames, height, width)
    encoders = {"vae": _vae_fingerprint(model), "text": _text_fingerprint(text_model)}

    def text_key(text: str) -> str:
        tokens = _tokens(tokenizer, text, max_sequence_length)
        key = _key(encoders["text"], tokens.tolist())
        path = caption_path(folder, key)
        if not _is_whole(path):
            with _memory("max_sequence_length"):
                _save(path, {"embedding": _embedding(text_model, tokens)})
        return key

    no_text = text_key("")
    texts = list(dict.fromkeys(caption for demo in demos for caption in demo.captions))
    keys = {text: text_key(text) for text in progress(texts, desc="captions", unit="caption")}
    clips: list[dict[str, Any]] = []
    unreadable: dict[Path, str] = {}
    for demo in progress(demos, desc="clips", unit="clip"):
        try:
            key = _key(demo.sha256, encoders["vae"], frames, height, width, noisy_images)
            path = clip_path(folder, key)
            if not _is_whole(path):
                pixels = _clip(demo, frames, height, width)
                with _memory("frames, height or width"):
                    _save(path, _moments(model, pixels, noisy_images, int(key[:15], 16)))
        except UserError as error:
            unreadable[demo.path] = str(error)
            continue
        clips.append({"name": demo.name, "key": key, "captions": {text: keys[text] for text in demo.captions}})
    if unreadable:
        _refuse(unreadable)
    scaling = float(model.config.scaling_factor)
    index = {
        "frames": frames,
        "height": height,
        "width": width,
        "max_sequence_length": max_sequence_length,
        "scale": scaling,
        # CogVideoX-1.5's autoencoder divides the image's latents by the factor, as it was trained.
        "image_scale": 1 / scaling if model.config.invert_scale_latents else scaling,
        "encoders": encoders,
        "no_text": no_text,
        "clips": clips,
    }
    with _writing(folder / INDEX):
        write_json(folder / INDEX, FORMAT | index)
    return LatentCache(folder)


def _check_shape(vae: Any, frames: int, height: int, width: int) -> None:
    ratio, spatial = vae.config.temporal_compression_ratio, 2 ** (len(vae.config.block_out_channels) - 1)
    if frames < 2 or (frames - 1) % ratio:
        raise UserError(f"frames {frames}: must be one more than a multiple of {int(ratio)} for this autoencoder")
    for name, value in (("height", height), ("width", width)):
        if value < spatial or value % spatial:
            raise UserError(f"{name} {value}: must be a positive multiple of {spatial} for this autoencoder")


def _clip(demo: Demo, frames: int, height: int, width: int) -> Tensor:
    """(T, H, W, 3) uint8."""
    video = demo.frames()
    return to_size(video[uniform_indices(len(video), frames)], height, width)


def noisy_first_frames(frame: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """First frames with the noise that CogVideoX's image-to-video training adds to their pixels (arXiv 2408.06072).

    Args:
        frame: (H, W, 3) uint8.
        count: K.

    Returns:
        (K, 3, H, W) float32, pixels in [-1, 1] plus σ · normal noise, log σ normal with mean -3 and deviation 0.5.
    """
    pixels = frame.permute(2, 0, 1).float() / 127.5 - 1
    sigma = (0.5 * torch.randn(count, 1, 1, 1, generator=generator) - 3).exp()
    return pixels + sigma * torch.randn(count, *pixels.shape, generator=generator)


@torch.no_grad()
def _moments(vae: Any, clip: Tensor, noisy_images: int, seed: int) -> dict[str, Tensor]:
    pixels = clip.to(vae.device).permute(3, 0, 1, 2)[None].to(torch.float32).div_(127.5).sub_(1.0).to(vae.dtype)
    noisy = noisy_first_frames(clip[0], noisy_images, torch.Generator().manual_seed(seed)).to(vae.device, vae.dtype)
    return {
        "moments": vae.encode(pixels).latent_dist.parameters[0],
        "image_moments": vae.encode(pixels[:, :, :1]).latent_dist.parameters[0],
        "noisy_image_moments": torch.cat([vae.encode(x[None, :, None]).latent_dist.parameters[:, :, 0] for x in noisy]),
        "image": clip[0],
    }


def _tokens(tokenizer: Callable[..., Any], text: str, length: int) -> Tensor:
    """(1, L) int64."""
    return tokenizer(
        [text], padding="max_length", max_length=length, truncation=True, add_special_tokens=True, return_tensors="pt"
    ).input_ids


@torch.no_grad()
def _embedding(text_encoder: Any, tokens: Tensor) -> Tensor:
    # Without a mask over the padding, as in the pipeline: the transformer was trained on such embeddings.
    return text_encoder(tokens.to(text_encoder.device))[0][0].to(text_encoder.dtype)


def _vae_fingerprint(vae: Any) -> str:
    keys = ("act_fn", "norm_eps", "norm_num_groups", "temporal_compression_ratio")
    encoder = nn.ModuleList([part for part in (vae.encoder, vae.quant_conv) if part is not None])
    return fingerprint(encoder, {key: vae.config[key] for key in keys} | {"dtype": str(vae.dtype)})


def _text_fingerprint(text_encoder: Any) -> str:
    keys = (
        "feed_forward_proj",
        "layer_norm_epsilon",
        "num_heads",
        "relative_attention_max_distance",
        "relative_attention_num_buckets",
    )
    described = {key: getattr(text_encoder.config, key) for key in keys}
    return fingerprint(text_encoder, described | {"dtype": str(text_encoder.dtype)})


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _is_whole(path: Path) -> bool:
    try:
        with safe_open(path, "pt"):  # compares the file's size with what its header promises
            return True
    except (FileNotFoundError, SafetensorError):
        return False


def _refuse(unreadable: Mapping[Path, str]) -> NoReturn:
    (_, reason), *others = unreadable.items()
    names = [str(path) for path, _ in others]
    also = f"; so are {', '.join(names[:5])}" + " and more" * (len(names) > 5) if names else ""
    raise UserError(f"{reason}{also}; replace or remove such files and run again: the rest is cached")


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    with _writing(path), atomic_path(path) as temporary:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RunFailed(
            f"{path}: cannot be written ({error}); make room and run again: what is cached stays"
        ) from error


@contextlib.contextmanager
def _memory(what: str) -> Iterator[None]:
    """Turns running out of the device's memory into a line that says what to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunFailed(f"out of memory on the device; lower {what}: what is cached stays") from error
