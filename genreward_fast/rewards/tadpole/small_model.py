"""The small text-to-image model, of the classes of a StableDiffusionPipeline: made, trained a step, and saved."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from genreward_fast.encoders.architectures import seeded
from genreward_fast.encoders.clip_weights import quiet
from genreward_fast.rewards.tadpole.architectures import SCHEDULER, TOKENS, UNET, VAE

SIZE = 64
_WORDS = 2048
_KL_WEIGHT = 1e-6  # as of latent diffusion's autoencoders


class SmallModel(nn.Module):
    """An autoencoder of 64 × 64 pictures, a text encoder for the captions' own words, and a denoiser."""

    def __init__(self, captions: Sequence[str], seed: int) -> None:
        super().__init__()
        # Without the captions' words, single letters would have to do.
        self.tokenizer = CLIPTokenizer().train_new_from_iterator(sorted(set(captions)), _WORDS, show_progress=False)
        self.tokenizer.model_max_length = TOKENS
        dim = UNET["tiny"]["cross_attention_dim"]
        with seeded(seed):
            self.vae: Any = AutoencoderKL(**VAE["tiny"])
            self.unet: Any = UNet2DConditionModel(**UNET["tiny"])
            self.text_encoder: Any = CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=len(self.tokenizer),
                    hidden_size=dim,
                    intermediate_size=4 * dim,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    max_position_embeddings=TOKENS,
                    bos_token_id=self.tokenizer.bos_token_id,
                    eos_token_id=self.tokenizer.eos_token_id,
                    pad_token_id=self.tokenizer.pad_token_id,
                )
            )
        self.scheduler: Any = DDIMScheduler(**SCHEDULER)

    def autoencoder_loss(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of sampled reconstructions of (N, 64, 64, 3) uint8, and a little KL to the normal.

        Args:
            generator: on the CPU.
        """
        pixels = self._pixels(frames)
        posterior = self.vae.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(pixels)
        reconstruction = self.vae.decode(posterior.mean + posterior.std * noise).sample
        return functional.mse_loss(reconstruction, pixels) + _KL_WEIGHT * posterior.kl().mean()

    @torch.no_grad()
    def set_scaling(self, frames: Tensor) -> None:
        """Makes the deviation of the latents of (N, 64, 64, 3) uint8 frames 1 (arXiv 2112.10752, appendix G)."""
        self.vae.register_to_config(
            scaling_factor=1 / self.vae.encode(self._pixels(frames)).latent_dist.mean.std().item()
        )

    def denoising_loss(self, frames: Tensor, texts: Sequence[str], generator: torch.Generator) -> Tensor:
        """Mean squared error of ε at noise levels drawn uniformly, given the texts."""
        with torch.no_grad():
            latents = self.vae.encode(self._pixels(frames)).latent_dist.mean * self.vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        levels = torch.randint(SCHEDULER["num_train_timesteps"], (len(frames),), generator=generator).to(latents.device)
        noisy = self.scheduler.add_noise(latents, noise, levels)
        return functional.mse_loss(self.unet(noisy, levels, encoder_hidden_states=self._embed(texts)).sample, noise)

    def save(self, folder: Path) -> None:
        """Writes the pipeline in diffusers' layout; the folder appears whole or not at all."""
        pipeline: Any = StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=self.scheduler,
            safety_checker=None,  # type: ignore[arg-type]
            feature_extractor=None,  # type: ignore[arg-type]
            requires_safety_checker=False,
        )
        temporary = folder.with_name(f".{folder.name}-writing")
        shutil.rmtree(temporary, ignore_errors=True)
        with quiet():
            pipeline.save_pretrained(temporary, safe_serialization=True)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)

    def _embed(self, texts: Sequence[str]) -> Tensor:
        """(N, TOKENS, D)."""
        tokens = self.tokenizer(
            list(texts), padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
        )
        return self.text_encoder(tokens.input_ids.to(self.unet.device))[0]

    def _pixels(self, frames: Tensor) -> Tensor:
        """(N, 3, 64, 64) float32 in [-1, 1], on the model's device."""
        return frames.to(self.unet.device).permute(0, 3, 1, 2).float() / 127.5 - 1
