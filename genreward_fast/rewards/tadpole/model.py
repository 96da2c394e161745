"""A latent diffusion model that predicts the noise in pictures or clips, with a text and without."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from genreward_fast.encoders.fingerprint import fingerprint
from genreward_fast.errors import UserError

PREDICTIONS = ("epsilon", "v_prediction")


class TextDiffusion(nn.Module):
    """Stable Diffusion's autoencoder and denoiser, or AnimateDiff's, for one text.

    Attributes:
        size: side in pixels of the frames that the model was made for.
        latent_shape: (C, h, w) of a frame.
        max_frames: of a clip; 1 for a model of pictures.
        fingerprint: sha256 over weights, text embeddings and noise schedule, before the cast to `dtype`.
        note: "" for trained weights, else what every output must say about them.
    """

    alphas: Tensor
    embeddings: Tensor

    def __init__(
        self,
        unet: Any,
        vae: Any,
        embeddings: Tensor,
        alphas: Tensor,
        *,
        prediction: str = "epsilon",
        dtype: torch.dtype = torch.float32,
        note: str = "",
    ) -> None:
        """
        Args:
            unet: UNet2DConditionModel, or UNetMotionModel for clips; taken over, and cast to `dtype`.
            vae: AutoencoderKL; likewise.
            embeddings: (2, L, D) of the negative text, then of the text.
            alphas: (levels,) ᾱ of the schedule.
            prediction: what the denoiser gives: "epsilon" or "v_prediction".

        Raises:
            UserError: the model predicts something else.
        """
        super().__init__()
        if prediction not in PREDICTIONS:
            raise UserError(f"the diffusion model predicts {prediction}; use one that predicts {PREDICTIONS[0]} or v")
        self.prediction = prediction
        self.note = note
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        side = unet.config.sample_size
        self.size: int = side * factor
        self.latent_shape: tuple[int, int, int] = (unet.config.in_channels, side, side)
        self.max_frames: int = unet.config.get("motion_max_seq_length") or 1
        self.scaling: float = vae.config.scaling_factor
        # The decoder is not used.
        self.encoder: nn.Module = vae.encoder
        self.to_moments: nn.Module = vae.quant_conv if vae.config.get("use_quant_conv", True) else nn.Identity()
        self.unet = unet
        self.register_buffer("embeddings", embeddings.float())
        self.register_buffer("alphas", alphas.float())
        described = {"prediction": prediction, "scaling": self.scaling, "size": self.size}
        self.fingerprint = fingerprint(self, described)
        nn.Module.to(self.encoder, dtype)
        nn.Module.to(self.to_moments, dtype)
        nn.Module.to(self.unet, dtype)
        self.dtype = dtype
        self.eval()
        self.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.embeddings.device

    def latents(self, frames: Tensor) -> Tensor:
        """(N, size, size, 3) uint8 to (N, C, h, w) float32: the posterior's mean, scaled.

        Raises:
            ValueError: another shape or dtype.
        """
        if frames.dtype != torch.uint8 or frames.shape[1:] != (self.size, self.size, 3):
            raise ValueError(
                f"frames must be (N, {self.size}, {self.size}, 3) uint8, not {tuple(frames.shape)} {frames.dtype}"
            )
        pixels = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
        mean, _ = self.to_moments(self.encoder(pixels.to(self.dtype))).chunk(2, dim=1)
        return mean.float() * self.scaling

    def predict(self, latents: Tensor, noise: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """ε as the model sees it in noisy latents, with the text and without.

        Args:
            latents, noise: (N, C, h, w) float32; of a model of clips (N, K, C, h, w).
            levels: (N,) int64.

        Returns:
            Two of the shape of `latents`, float32.
        """
        alpha = self.alphas[levels].view(-1, *[1] * (latents.ndim - 1))
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        output = self._denoise(torch.cat([noisy, noisy]), torch.cat([levels, levels])).float()
        unconditional, conditional = output.chunk(2)
        if self.prediction == "epsilon":
            return conditional, unconditional
        # v = √ᾱ·ε − √(1 − ᾱ)·x (arXiv 2202.00512)
        root, rest = alpha.sqrt(), (1 - alpha).sqrt() * noisy
        return root * conditional + rest, root * unconditional + rest

    def _denoise(self, noisy: Tensor, levels: Tensor) -> Tensor:
        """The denoiser on twice N latents: the first half without the text, the second with it."""
        clips = noisy.ndim == 5
        # AnimateDiff wants clips as (N, C, K, h, w), and the text of each frame.
        texts = self.embeddings.repeat_interleave(len(noisy) // 2 * (noisy.shape[1] if clips else 1), dim=0)
        sample = (noisy.transpose(1, 2) if clips else noisy).to(self.dtype)
        output = self.unet(sample, levels, encoder_hidden_states=texts.to(self.dtype), return_dict=False)[0]
        return output.transpose(1, 2) if clips else output
