"""DINOv3 (arXiv 2508.10104) from pixels to the class token, with the library's weights and none of its small steps."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import DINOv3ViTModel

from genreward_fast.encoders.transformer_blocks import Blocks, Layer, Linear, Norm, Patches


class ClassTokenNetwork(nn.Module):
    """Normalised pictures of one size to the class token after the final norm.

    It has no state of its own: everything is made from the library's module, which it does not change.
    """

    def __init__(self, vit: DINOv3ViTModel, size: int, dtype: torch.dtype) -> None:
        """
        Args:
            vit: of a configuration that `of` takes.
            size: side of the pictures in pixels.
        """
        super().__init__()
        library: Any = vit.eval()  # else the library moves the angles at random
        embeddings, config = library.embeddings, library.config
        conv = embeddings.patch_embeddings
        shift = conv.bias.detach().float()
        patches = (size // config.patch_size) ** 2
        own = torch.cat([embeddings.cls_token[0], embeddings.register_tokens[0]]).detach().float() - shift
        self.patches = Patches(conv, torch.cat([own, own.new_zeros(patches, len(shift))]), dtype)
        cosine, sine = library.rope_embeddings(torch.zeros(1, 3, size, size, device=shift.device))
        half = cosine.shape[-1] // 2  # the library's second half repeats the first
        self.cosine: Tensor = nn.Buffer(cosine[:, :half].contiguous(), persistent=False)
        self.sine: Tensor = nn.Buffer(sine[:, :half].contiguous(), persistent=False)
        self.blocks = Blocks(map(_layer, _layers(library)), shift, config.num_attention_heads, dtype)
        self.norm = Norm(library.norm, self.blocks.shift)

    @classmethod
    def of(cls, vit: DINOv3ViTModel, size: int, dtype: torch.dtype) -> Self | None:
        """Of the library's module; None if its configuration is one that this network does not compute."""
        config: Any = vit.config
        activation = "silu" if config.use_gated_mlp else "gelu"
        head = config.hidden_size // config.num_attention_heads
        usual = config.hidden_act == activation and config.num_channels == 3 and isinstance(config.patch_size, int)
        return cls(vit, size, dtype) if usual and head % 4 == 0 else None

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, size, size) to (B, D), in the weights' dtype."""
        return self.norm(self.blocks.first_token(self.patches(pixels), (self.cosine, self.sine)))


def _layers(library: Any) -> Any:
    """The blocks, which not every version of the library keeps in the same place."""
    return getattr(library, "model", library).layer


def _layer(layer: Any) -> Layer:
    attention, mlp = layer.attention, layer.mlp
    up = [mlp.gate_proj, mlp.up_proj] if hasattr(mlp, "gate_proj") else [mlp.up_proj]
    return Layer(
        norm1=layer.norm1,
        qkv=Linear.joined(map(Linear.of, (attention.q_proj, attention.k_proj, attention.v_proj))),
        output=Linear.of(attention.o_proj, layer.layer_scale1.lambda1),
        norm2=layer.norm2,
        up=Linear.joined(map(Linear.of, up)),
        down=Linear.of(mlp.down_proj, layer.layer_scale2.lambda1),
        gated=hasattr(mlp, "gate_proj"),
    )
