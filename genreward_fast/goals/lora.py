"""Low-rank adapters (LoRA, arXiv 2106.09685) of the video transformer: made, loaded, and refused for another base."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from genreward_fast.encoders.sources import loading
from genreward_fast.errors import UserError
from genreward_fast.files import read_json
from genreward_fast.goals.video_model import Pipeline, Transformer

WEIGHTS = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for
RECORD = "finetune.json"
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
_SAMPLES = 256


def base_fingerprint(transformer: nn.Module) -> str:
    """sha256 (hexadecimal) over the names and shapes of all weights, and 256 values of each, in bfloat16.

    So it is quick at 5B, and the same whether the weights were loaded in 16 or in 32 bits.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(transformer.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        values = flat[:: max(1, len(flat) // _SAMPLES)][:_SAMPLES].to("cpu", torch.bfloat16).contiguous()
        digest.update(json.dumps([name, list(tensor.shape)]).encode())
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def add_lora(transformer: Transformer, rank: int) -> dict[str, Any]:
    """Freezes the weights and adds adapters to the attention's projections; they change nothing until trained.

    Args:
        rank: also the adapters' α, so that their scale is 1.

    Returns:
        the adapters' configuration, as diffusers stores it beside them.
    """
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS, init_lora_weights=True))
    cast_training_params(transformer, dtype=torch.float32)
    return transformer.peft_config["default"].to_dict()


def load_lora(pipeline: Pipeline, folder: Path) -> None:
    """Loads adapters into the pipeline's transformer.

    Raises:
        UserError: none there, damaged, or made for another base.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"{path}: no such file; --lora is the folder that genreward finetune wrote")
    if (folder / RECORD).is_file():
        made_for = read_json(folder / RECORD).get("base")
        if made_for != base_fingerprint(pipeline.transformer):
            raise UserError(f"{folder}: this LoRA was made for another base model; use it with the one it was made for")
    try:
        with safe_open(path, "pt") as file:
            modules = {name.removeprefix("transformer.").split(".lora_")[0] for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged ({error}); use an intact copy") from error
    foreign = modules - {name for name, _ in pipeline.transformer.named_modules()}
    if foreign:
        raise UserError(f"{path}: made for another base model, which has {min(foreign)}; use it with that one")
    with loading("a LoRA of this base model", path, "--lora"):
        pipeline.load_lora_weights(folder, weight_name=WEIGHTS, use_safetensors=True, local_files_only=True)
