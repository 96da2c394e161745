"""What VIPER says of windows of codes."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from genreward_fast.rewards.viper.network import code_log_likelihood

AT_ONCE = 16
"""Windows in one batch: more need memory, and keep a GPU no busier."""


class Likelihood:
    """log p(x_t | the window's frames before it)."""

    def __init__(self, network: GPT2LMHeadModel):
        self.network = network.eval()

    @torch.no_grad()
    def __call__(self, codes: Tensor, fresh: int) -> Tensor:
        """(B, T, L) int64 to (B, fresh) float32, nats of a whole frame."""
        parts = [code_log_likelihood(self.network, part, fresh).sum(-1) for part in codes.split(AT_ONCE)]
        return torch.cat(parts)
