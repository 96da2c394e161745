"""Loads Stable Diffusion and AnimateDiff from diffusers' layout: a hub id, or a folder with a subfolder a part."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genreward_fast.encoders.sources import check_loading_info, loading, local_folder, read_diffusers_model
from genreward_fast.errors import UserError
from genreward_fast.files import read_json
from genreward_fast.rewards.tadpole.model import TextDiffusion

OPTION = "--reward-weights"
ADAPTER_OPTION = "--motion-adapter"
# One precision of each part; a hub's repository holds several.
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_FILES = [
    "model_index.json", "*/*.json", "tokenizer/*", f"unet/{_WEIGHTS}", f"vae/{_WEIGHTS}", f"motion_adapter/{_WEIGHTS}",
    "text_encoder/model.safetensors",
]  # fmt: skip


def read_picture_model(source: str, text: str, dtype: torch.dtype) -> TextDiffusion:
    """Stable Diffusion for `text`, on the CPU.

    Args:
        source: of a StableDiffusionPipeline.

    Raises:
        UserError: unreachable, missing, damaged, or another model.
    """
    folder = _folder(source, ("StableDiffusionPipeline",))
    unet = _read_part(folder / "unet", "UNet2DConditionModel", OPTION)
    return _assemble(folder, unet, "", text, {}, dtype)


def read_clip_model(source: str, adapter: str, text: str, negative: str, dtype: torch.dtype) -> TextDiffusion:
    """AnimateDiff (arXiv 2307.04725) for `text`, on the CPU.

    Args:
        source: of an AnimateDiffPipeline, or of a StableDiffusionPipeline (1.5) that gets the motion modules.
        adapter: hub id or folder of the motion modules; "" if the source has them.
        negative: what the text is compared with.

    Raises:
        UserError: unreachable, missing, damaged, or another model, or the motion modules are missing or too many.
    """
    from genreward_fast.rewards.tadpole.architectures import with_motion

    folder = _folder(source, ("AnimateDiffPipeline", "StableDiffusionPipeline"))
    config = read_json(folder / "unet" / "config.json")
    if config.get("_class_name") == "UNetMotionModel":
        if adapter:
            raise UserError(
                f"{ADAPTER_OPTION} {adapter}: {source} has motion modules of its own; leave one of them out"
            )
        return _assemble(folder, _read_part(folder / "unet", "UNetMotionModel", OPTION), negative, text, {}, dtype)
    if not adapter:
        raise UserError(
            f"{source}: has no motion modules; name them with {ADAPTER_OPTION}, for Stable Diffusion 1.5 "
            "guoyww/animatediff-motion-adapter-v1-5-2 or a folder with them"
        )
    modules = local_folder(adapter, ["config.json", _WEIGHTS], ADAPTER_OPTION)
    motion = _read_part(modules, "MotionAdapter", ADAPTER_OPTION)
    unet = _read_part(folder / "unet", "UNet2DConditionModel", OPTION)
    with loading("motion modules for this model", modules, ADAPTER_OPTION):
        unet = with_motion(unet, motion)
    # The motion modules were trained with another schedule than the pictures' model.
    return _assemble(folder, unet, negative, text, {"beta_schedule": "linear"}, dtype)


def _folder(source: str, pipelines: tuple[str, ...]) -> Path:
    folder = local_folder(source, _FILES, OPTION)
    index = read_json(folder / "model_index.json")
    found = index.get("_class_name") if isinstance(index, dict) else None
    if found not in pipelines:
        raise UserError(f"{folder}: holds {found}, not {' or '.join(pipelines)}; pass the right one with {OPTION}")
    return folder


def _read_part(folder: Path, kind: str, option: str) -> Any:
    """The model of diffusers' class `kind` in float32."""
    import diffusers

    return read_diffusers_model(getattr(diffusers, kind), folder, kind, option)


def _assemble(
    folder: Path, unet: Any, negative: str, text: str, schedule: Mapping[str, Any], dtype: torch.dtype
) -> TextDiffusion:
    """
    Args:
        schedule: what replaces settings of the folder's own noise schedule.
    """
    from diffusers import DDIMScheduler

    from genreward_fast.encoders.clip_weights import quiet

    vae = _read_part(folder / "vae", "AutoencoderKL", OPTION)
    config = read_json(folder / "scheduler" / "scheduler_config.json")
    with loading("a noise schedule", folder / "scheduler", OPTION), quiet():
        # Samplers differ and have settings of their own, the noise of a level does not.
        scheduler: Any = DDIMScheduler.from_config(config, **schedule)
    return TextDiffusion(
        unet,
        vae,
        _embeddings(folder, [negative, text]),
        scheduler.alphas_cumprod,
        prediction=scheduler.config.prediction_type,
        dtype=dtype,
    )


@torch.no_grad()
def _embeddings(folder: Path, texts: list[str]) -> Tensor:
    """(N, L, D) float32, as the pipelines embed texts. The text encoder is not kept."""
    from transformers import CLIPTextModel, CLIPTokenizer

    read_json(folder / "text_encoder" / "config.json")
    with loading("a tokenizer", folder / "tokenizer", OPTION):
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    with loading("a CLIP text encoder", folder / "text_encoder", OPTION):
        loaded: Any = CLIPTextModel.from_pretrained(
            folder / "text_encoder",
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=True,
            dtype=torch.float32,
        )
        encoder, info = loaded
        # Older files hold the positions 0, 1, 2 … as a tensor, which the library has no more.
        unexpected = [name for name in info["unexpected_keys"] if not name.endswith("position_ids")]
        check_loading_info({**info, "unexpected_keys": unexpected}, folder / "text_encoder", OPTION)
        length = encoder.config.max_position_embeddings
        tokens = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return encoder(tokens.input_ids)[0]
