"""OpenCLIP's two towers (arXiv 2212.07143) with the library's weights and fewer, larger steps."""

from __future__ import annotations

from typing import Any, Self

import open_clip
import torch
from open_clip.transformer import LayerScale, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from genreward_fast.encoders.transformer_blocks import Blocks, Layer, Linear, Norm, Patches


class ImageTower(nn.Module):
    """Normalised pictures to embeddings of any length.

    It has no state of its own: everything is made from the library's module, which it does not change.
    """

    def __init__(self, visual: VisionTransformer, dtype: torch.dtype) -> None:
        """
        Args:
            visual: of a configuration that `of` takes.
        """
        super().__init__()
        library: Any = visual
        tokens = library.positional_embedding.detach().float().clone()
        tokens[0] += library.class_embedding.detach().float()
        nothing = torch.zeros_like(tokens[0])
        self.patches = Patches(library.conv1, tokens, dtype)
        self.before = Norm(library.ln_pre, nothing)
        self.blocks = _blocks(library.transformer, nothing, dtype)
        self.after = Norm(library.ln_post, self.blocks.shift)
        self.projection: Tensor = nn.Buffer(library.proj.detach().to(dtype, copy=True), persistent=False)

    @classmethod
    def of(cls, visual: Any, dtype: torch.dtype) -> Self | None:
        """Of the library's module; None if it is one that this tower does not compute."""
        usual = (
            type(visual) is VisionTransformer
            and visual.attn_pool is None
            and visual.pool_type == "tok"
            and not visual.output_tokens
            and visual.proj is not None
            and isinstance(visual.ln_pre, nn.LayerNorm)
            and visual.patch_size[0] == visual.patch_size[1]
            and _is_usual(visual.transformer)
        )
        return cls(visual, dtype) if usual else None

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, D), in the weights' dtype."""
        stream = self.before(self.patches(pixels))
        return self.after(self.blocks.first_token(stream)) @ self.projection


class TextTower(nn.Module):
    """Embedded tokens to embeddings of any length. What is said of `ImageTower` holds here, too."""

    def __init__(self, model: open_clip.CLIP, dtype: torch.dtype) -> None:
        """
        Args:
            model: of a configuration that `of` takes.
        """
        super().__init__()
        library: Any = model
        places = library.positional_embedding.detach()
        self.places: Tensor = nn.Buffer(places.to(dtype, copy=True), persistent=False)
        self.blocks = _blocks(library.transformer, torch.zeros_like(places[0], dtype=torch.float32), dtype)
        self.after = Norm(library.ln_final, self.blocks.shift)
        self.projection: Tensor = nn.Buffer(library.text_projection.detach().to(dtype, copy=True), persistent=False)

    @classmethod
    def of(cls, model: Any, dtype: torch.dtype) -> Self | None:
        """Of the library's module; None if it is one that this tower does not compute."""
        usual = (
            type(model) is open_clip.CLIP
            and model.text_pool_type == "argmax"
            and isinstance(model.text_projection, Tensor)
            and model.attn_mask is not None
            and len(model.positional_embedding) == model.context_length
            and _is_usual(model.transformer)
        )
        return cls(model, dtype) if usual else None

    def forward(self, embedded: Tensor, last: Tensor) -> Tensor:
        """Sentences to (P, D), in the weights' dtype.

        Args:
            embedded: (P, L, C), the table's row of each token.
            last: (P,) int64, the place of the token that ends the sentence.
        """
        stream = embedded + self.places
        for block in self.blocks:
            block(stream, causal=True)
        ends = stream[torch.arange(len(last), device=last.device), last]
        return self.after(ends) @ self.projection


def _is_usual(transformer: Any) -> bool:
    """Whether all blocks are the library's ordinary ones, with exact GELU."""
    return all(
        type(block) is ResidualAttentionBlock
        and not hasattr(block, "ln_1_kv")
        and type(block.mlp.gelu) is nn.GELU
        and block.mlp.gelu.approximate == "none"
        for block in transformer.resblocks
    )


def _blocks(transformer: Any, shift: Tensor, dtype: torch.dtype) -> Blocks:
    heads = transformer.resblocks[0].attn.num_heads
    return Blocks(map(_layer, transformer.resblocks), shift, heads, dtype)


def _layer(block: Any) -> Layer:
    attention, mlp = block.attn, block.mlp
    scales = [scale.gamma if isinstance(scale, LayerScale) else None for scale in (block.ls_1, block.ls_2)]
    return Layer(
        norm1=block.ln_1,
        qkv=Linear(attention.in_proj_weight.detach().float(), attention.in_proj_bias.detach().float()),
        output=Linear.of(attention.out_proj, scales[0]),
        norm2=block.ln_2,
        up=Linear.of(mlp.c_fc),
        down=Linear.of(mlp.c_proj, scales[1]),
        gated=False,
    )
