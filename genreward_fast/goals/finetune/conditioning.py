"""What the transformer is given at a step, exactly as diffusers' CogVideoXImageToVideoPipeline gives it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox_image2video import get_resize_crop_region_for_grid
from torch import Tensor

from genreward_fast.errors import UserError

OFS = 2.0  # what the pipeline always passes to checkpoints that have the embedding


class Conditioning:
    """From what the autoencoder gives to the transformer's arguments."""

    def __init__(self, transformer: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
        """
        Args:
            transformer, vae: their configs.
        """
        self.config = transformer
        self.video_scale: float = vae["scaling_factor"]
        # CogVideoX-1.5 was trained with first frames divided by the factor, and videos multiplied with it.
        inverted = vae.get("invert_scale_latents", False)
        self.image_scale = 1 / self.video_scale if inverted else self.video_scale
        self.channels: int = vae["latent_channels"]
        self._rotary = lru_cache(maxsize=4)(self._compute_rotary)

    def video_latents(self, video: Tensor) -> Tensor:
        """(B, C, T', H', W') latents to (B, F, C, H', W'), scaled.

        F is T', or with patches in time the next multiple of their length: the first frame is repeated in front, where
        the pipeline cuts it off again.
        """
        latents = video.transpose(1, 2) * self.video_scale
        missing = -latents.shape[1] % (self.config["patch_size_t"] or 1)
        return torch.cat([latents[:, :1].expand(-1, missing, -1, -1, -1), latents], 1)

    def image_latents(self, image: Tensor, frames: int) -> Tensor:
        """(B, C, H', W') latents of first frames to (B, F, C, H', W'), scaled, zeros after the first one."""
        latents = image.new_zeros(image.shape[0], frames, *image.shape[1:])
        latents[:, 0] = image * self.image_scale
        return latents

    def model_inputs(
        self, noisy: Tensor, image: Tensor, text: Tensor, timesteps: Tensor, dtype: torch.dtype
    ) -> dict[str, Any]:
        """The transformer's arguments.

        Args:
            noisy, image: (B, F, C, H', W').
            text: (B, L, D).
            timesteps: (B,) int64.
            dtype: of what it is given.
        """
        frames, _, height, width = noisy.shape[1:]
        rotary = self.config["use_rotary_positional_embeddings"]
        ofs = self.config["ofs_embed_dim"] is not None
        return {
            "hidden_states": torch.cat([noisy, image], 2).to(dtype),
            "encoder_hidden_states": text.to(dtype),
            "timestep": timesteps,
            "ofs": torch.full((1,), OFS, dtype=dtype, device=noisy.device) if ofs else None,
            "image_rotary_emb": self._rotary(frames, height, width, noisy.device) if rotary else None,
            "return_dict": False,
        }

    def check(self, video: Tensor, text: Tensor) -> None:
        """Refuses encoded clips that the model cannot take.

        Args:
            video: (2C, T', H', W') of a clip.
            text: (L, D).

        Raises:
            UserError: with what does not fit.
        """
        config = self.config
        channels, _, height, width = video.shape
        tokens, dim = config["max_text_seq_length"], config["text_embed_dim"]
        if channels != 2 * self.channels or height % config["patch_size"] or width % config["patch_size"]:
            raise UserError(f"--data: clips encoded as {tuple(video.shape)} do not fit this model; encode them for it")
        if tuple(text.shape) != (tokens, dim):
            raise UserError(
                f"--data: texts are {tuple(text.shape)}, the model takes {(tokens, dim)}; encode them for it"
            )
        if config["use_learned_positional_embeddings"] and (height, width) != (
            config["sample_height"],
            config["sample_width"],
        ):
            raise UserError(
                f"--data: latents of {height}x{width}, but this model knows {config['sample_height']}x"
                f"{config['sample_width']} only; encode frames of that size"
            )

    def _compute_rotary(self, frames: int, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
        patch, patch_t = self.config["patch_size"], self.config["patch_size_t"]
        grid = height // patch, width // patch
        base = self.config["sample_height"] // patch, self.config["sample_width"] // patch
        if patch_t is None:  # CogVideoX 1.0; the branch below is 1.5
            kind: dict[str, Any] = {"crops_coords": get_resize_crop_region_for_grid(grid, base[1], base[0])}
        else:
            kind = {"crops_coords": None, "grid_type": "slice", "max_size": base}
        rotary: Any = get_3d_rotary_pos_embed(
            embed_dim=self.config["attention_head_dim"],
            grid_size=grid,
            temporal_size=frames // (patch_t or 1),
            device=device,
            **kind,
        )
        return rotary
