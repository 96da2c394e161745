"""From `--data` to encoded clips: demonstrations are encoded once by the parts of the model that are not trained."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from genreward_fast.encoders.video import read_vae
from genreward_fast.errors import UserError
from genreward_fast.files import read_json
from genreward_fast.goals.demos import read_demos
from genreward_fast.goals.finetune.encoded import CachedClips
from genreward_fast.goals.latent_cache import INDEX
from genreward_fast.goals.latent_fill import fill_latent_cache
from genreward_fast.goals.video_model import OPTION, cast, read_text_encoder


def encoded_clips(
    data: Path, latents: Path, model: Path, dtype: torch.dtype, device: torch.device, camera: str | None = None
) -> CachedClips:
    """The clips of `data`, which is a cache of latents itself, or demonstrations: these are encoded into `latents`.

    What is in `latents` already is not computed again. The encoders are freed before this returns.

    Args:
        model: folder in diffusers' layout; clips get the frames and the size that its transformer was made for.
        dtype, device: of the encoding.
        camera: of a LeRobot dataset; see `read_demos`.

    Raises:
        UserError: bad data, or several processes and the data is not encoded yet.
        RunFailed: no room on the disk, or too little memory.
    """
    if (data / INDEX).exists():
        return CachedClips(data)
    demos = read_demos(data, camera=camera)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if not (latents / INDEX).exists():
            raise UserError(
                f"{latents}: {data} is not encoded yet; do that with one process first (--steps 1 will do), "
                f"then name the folder with --data {latents}"
            )
        return CachedClips(latents)
    shape = read_json(model / "transformer" / "config.json")
    text_encoder, tokenizer = read_text_encoder(model, dtype)
    vae: Any = read_vae(str(model), OPTION)  # the library gives its attributes to type checkers as unknown
    spatial = 2 ** (len(vae.config["block_out_channels"]) - 1)
    fill_latent_cache(
        demos,
        latents,
        vae=cast(vae, dtype).to(device).eval(),
        text_encoder=text_encoder.to(device).eval(),
        tokenizer=tokenizer,
        frames=shape["sample_frames"],
        height=shape["sample_height"] * spatial,
        width=shape["sample_width"] * spatial,
        max_sequence_length=shape["max_text_seq_length"],
    )
    return CachedClips(latents)
