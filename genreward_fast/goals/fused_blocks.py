"""The video transformer's blocks in fewer passes over memory than diffusers makes, the same up to rounding.

A block is five parts: what is between products is compiled to few kernels, queries, keys and values are one product,
and on CUDA the feed-forward's GELU is part of the product before it. The attention stays a module of its own, so that
an approximation may leave it out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from genreward_fast.goals.attention import attention

Modulated = tuple[Tensor, Tensor, Tensor]
"""(B, L + N, D) normed tokens of text and video; (B, 1, D) gates of the video's tokens, of the text's."""


def fuse_blocks(transformer: Any, attention_name: str, *, compiled: bool = True) -> None:
    """Replaces the computation of a `CogVideoXTransformer3DModel`'s blocks; for inference.

    Layers that are not plain (LoRA) are computed by themselves, with their adapters.

    Args:
        transformer: with the library's attention processors.
        attention_name: as in `goals/attention.py`; `auto` takes the one that surrounds the call.
        compiled: compile the parts, each once for all blocks.
    """
    choose: Callable[[Any], Any] = compile_once if compiled else lambda function: function
    for block in transformer.transformer_blocks:
        attn = block.attn1
        if all(type(layer) is nn.Linear for layer in (attn.to_q, attn.to_k, attn.to_v)):
            attn.fuse_projections()
        # The forwards, not the modules: an approximation's hooks stand around them and cannot be compiled.
        attn.forward = partial(choose(attend), attn, attention_name)
        block.forward = partial(forward_block, block, choose(modulate), choose(add), choose(add_and_modulate))


@lru_cache
def compile_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` of a function that gets the modules it uses as arguments."""
    return torch.compile(function, fullgraph=True, dynamic=False)


def forward_block(
    block: Any,
    modulate_with: Callable[..., Modulated],
    add_to: Callable[..., tuple[Tensor, Tensor]],
    add_and_modulate_with: Callable[..., tuple[Tensor, Tensor, Modulated]],
    /,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    attention_kwargs: dict[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """What `CogVideoXBlock.forward` computes.

    Args:
        hidden_states: (B, N, D) tokens of the video.
        encoder_hidden_states: (B, L, D) tokens of the text.
        temb: (B, E) embedding of the timestep.
        image_rotary_emb: cosine and sine (N, head size).
        attention_kwargs: has no use here.
    """
    video, text = hidden_states, encoder_hidden_states
    tokens, *gates = modulate_with(block.norm1, video, text, temb)
    attended = block.attn1(tokens, image_rotary_emb)
    video, text, (tokens, *last_gates) = add_and_modulate_with(block.norm2, video, text, attended, *gates, temb)
    return add_to(video, text, feed_forward(block.ff, tokens), *last_gates)


def modulate(norm: Any, video: Tensor, text: Tensor, temb: Tensor) -> Modulated:
    """A `CogVideoXLayerNormZero`, with text and video side by side in the result."""
    shift, scale, gate, text_shift, text_scale, text_gate = norm.linear(norm.silu(temb))[:, None].chunk(6, dim=-1)
    normed = norm.norm(text) * (1 + text_scale) + text_shift, norm.norm(video) * (1 + scale) + shift
    return torch.cat(normed, dim=1), gate, text_gate


def add(video: Tensor, text: Tensor, tokens: Tensor, gate: Tensor, text_gate: Tensor) -> tuple[Tensor, Tensor]:
    """Video and text with what a sublayer gave for both, gated."""
    length = text.shape[1]
    return video + gate * tokens[:, length:], text + text_gate * tokens[:, :length]


def add_and_modulate(
    norm: Any, video: Tensor, text: Tensor, tokens: Tensor, gate: Tensor, text_gate: Tensor, temb: Tensor
) -> tuple[Tensor, Tensor, Modulated]:
    """`add`, and `modulate` of the sums."""
    video, text = add(video, text, tokens, gate, text_gate)
    return video, text, modulate(norm, video, text, temb)


def attend(attn: Any, attention_name: str, tokens: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
    """The attention over text and video, (B, L + N, D) to the same; the last N tokens are rotated."""
    if attn.fused_projections:
        projected = attn.to_qkv(tokens)
    else:
        projected = torch.cat([attn.to_q(tokens), attn.to_k(tokens), attn.to_v(tokens)], dim=-1)
    query, key, value = projected.unflatten(-1, (3, attn.heads, -1)).unbind(2)
    if attn.norm_q is not None:
        query, key = attn.norm_q(query), attn.norm_k(key)
    if rotary is not None:
        query, key = rotate(query, *rotary), rotate(key, *rotary)
    with attention(attention_name):
        heads = functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)))
    return attn.to_out[0](heads.transpose(1, 2).flatten(2))


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """(B, L + N, H, K) with the pairs (2i, 2i + 1) of the last N tokens rotated, in float32 inside.

    One pass over all tokens: the text's are rotated by nothing.
    """
    before = x.shape[1] - len(cosine)
    cosine = functional.pad(cosine, (0, 0, before, 0), value=1.0)[:, None]
    sine = functional.pad(sine, (0, 0, before, 0))[:, None]
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-odd, even], -1).flatten(-2)
    return (x.float() * cosine + turned * sine).to(x.dtype)


def feed_forward(ff: Any, tokens: Tensor) -> Tensor:
    """A block's feed-forward layer; cuBLAS applies GELU (tanh) inside the first product where it can."""
    up, down = ff.net[0], ff.net[2]
    plain = type(up.proj) is nn.Linear and getattr(up, "approximate", None) == "tanh" and up.proj.bias is not None
    if not (plain and tokens.is_cuda):
        return down(up(tokens))
    rows = torch._addmm_activation(up.proj.bias, tokens.flatten(0, 1), up.proj.weight.t(), use_gelu=True)
    return down(rows).view_as(tokens)
