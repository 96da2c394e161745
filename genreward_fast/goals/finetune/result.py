"""What a run gives: a LoRA or a transformer in diffusers' own formats, with a record of how it was made."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genreward_fast.files import atomic_path, write_json
from genreward_fast.goals.lora import RECORD, WEIGHTS


def save_lora(folder: Path, weights: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Writes `folder/pytorch_lora_weights.safetensors`, which `pipeline.load_lora_weights(folder)` loads.

    Args:
        weights: by the names that they have in the transformer.
        metadata: as `add_lora` gives it.
    """
    from diffusers import CogVideoXImageToVideoPipeline

    layers = {name.replace(".default.", "."): tensor for name, tensor in weights.items() if ".lora_" in name}
    with atomic_path(folder / WEIGHTS) as temporary:
        CogVideoXImageToVideoPipeline.save_lora_weights(
            temporary.parent,
            transformer_lora_layers=layers,
            weight_name=temporary.name,
            transformer_lora_adapter_metadata=metadata,
        )


def save_transformer(
    folder: Path, weights: dict[str, Tensor], config: dict[str, Any], dtype: torch.dtype = torch.bfloat16
) -> None:
    """Writes `folder/transformer`, which `CogVideoXTransformer3DModel.from_pretrained` loads.

    The folder appears whole; one from before is replaced.
    """
    from diffusers import CogVideoXTransformer3DModel

    with torch.device("meta"):
        transformer = CogVideoXTransformer3DModel.from_config(config)
    transformer.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()}, assign=True)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".transformer-", dir=folder))
    try:
        transformer.save_pretrained(temporary)
        temporary.chmod(0o755)
        final, old = folder / "transformer", folder / ".transformer-old"
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            os.replace(final, old)
        os.replace(temporary, final)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_record(folder: Path, record: dict[str, Any]) -> None:
    """Writes `folder/finetune.json`."""
    write_json(folder / RECORD, record)
