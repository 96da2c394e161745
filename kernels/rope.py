"""Rotary position embedding (Su et al., arXiv 2104.09864) of queries and keys, where they lie."""

from __future__ import annotations

from torch import Tensor

from genreward_fast.kernels.triton_support import HAS_TRITON, padded, runs_triton, wide

TILE = 512


def rope_reference(x: Tensor, cosine: Tensor, sine: Tensor) -> None:
    """What `rope` computes, in plain PyTorch with float32 inside."""
    patches = x[:, x.shape[1] - len(cosine) :, :-1]
    first, second = wide(patches).chunk(2, -1)
    by = [table.to(first)[:, None, None] for table in (cosine, sine)]
    half = x.shape[-1] // 2
    rotated = first * by[0] - second * by[1], second * by[0] + first * by[1]
    patches[..., :half], patches[..., half:] = (part.to(x.dtype) for part in rotated)


def rope(x: Tensor, cosine: Tensor, sine: Tensor) -> None:
    """Rotates the pairs (i, i + D / 2) of the last P tokens' queries and keys in place, in float32 inside.

    Tokens before the last P (class and registers), and the values, stay as they are. No gradients.

    Args:
        x: (B, N, M, H, D) of any floating dtype, contiguous; the last of the M projections are the values, the others
            (queries and keys, or keys alone) are rotated.
        cosine, sine: (P, D / 2) of any floating dtype, contiguous, of each token's angles.

    Raises:
        ValueError: x is not contiguous, or the tables do not fit it.
    """
    images, tokens, kinds, heads, size = x.shape
    patches, half = cosine.shape
    if not x.is_contiguous() or 2 * half != size or patches > tokens or sine.shape != cosine.shape:
        raise ValueError(f"rope: tables {tuple(cosine.shape)} do not fit {tuple(x.shape)}, which must be contiguous")
    rows, pairs = images * patches, (kinds - 1) * heads * half
    if not runs_triton(x, cosine, sine) or rows * pairs == 0:
        rope_reference(x, cosine, sine)
        return
    tile = padded(pairs)
    block = max(1, TILE // tile)
    _rotate[(-(-rows // block),)](
        x,
        cosine,
        sine,
        rows,
        tokens,
        patches,
        pairs,
        kinds * heads * size,
        HALF=half,
        ROWS=block,
        SIZE=tile,
        num_warps=4,
    )


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _rotate(
        x,
        cosine,
        sine,
        rows,
        tokens,
        patches,
        pairs,
        pitch,
        HALF: tl.constexpr,
        ROWS: tl.constexpr,
        SIZE: tl.constexpr,
    ):
        """Programs go by ROWS tokens of those that are rotated."""
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        pair = tl.arange(0, SIZE)
        inside = (row < rows)[:, None] & (pair < pairs)[None, :]
        patch = row % patches
        token = row // patches * tokens + (tokens - patches) + patch
        at = x + token.to(tl.int64)[:, None] * pitch + (pair // HALF * (2 * HALF) + pair % HALF)[None, :]
        angle = patch[:, None] * HALF + (pair % HALF)[None, :]
        by_cosine = tl.load(cosine + angle, mask=inside, other=0.0).to(tl.float32)
        by_sine = tl.load(sine + angle, mask=inside, other=0.0).to(tl.float32)
        first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
        kind = x.dtype.element_ty
        tl.store(at, (first * by_cosine - second * by_sine).to(kind), mask=inside)
        tl.store(at + HALF, (second * by_cosine + first * by_sine).to(kind), mask=inside)
