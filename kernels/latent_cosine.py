"""The cosine of a batch of latents with one goal latent that never changes."""

from __future__ import annotations

import torch
from torch import Tensor

from genreward_fast.kernels.triton_support import HAS_TRITON, runs_triton, wide

BLOCK = 1024
MAX_SPLITS = 256


def latent_cosine_reference(latent: Tensor, goal: Tensor) -> Tensor:
    """What `latent_cosine` computes, in plain float32 PyTorch."""
    flat = wide(latent).flatten(1)
    # sum() adds pairwise; a matrix product may add 10^5 terms one by one and lose two digits
    dot = (flat * wide(goal).flatten()).sum(dim=1)
    norm = flat.square().sum(dim=1).sqrt()
    return dot / torch.where(norm > 0, norm, 1.0)


def latent_cosine(latent: Tensor, goal: Tensor) -> Tensor:
    """Cosine of each latent with a goal of unit norm: latent·goal / ‖latent‖, and 0 for a latent of zeros.

    The sums are float32. A row's result depends neither on the batch size nor on the GPU's model, and repeats exactly.

    Args:
        latent: (B, ...) of any floating dtype, with n elements a row.
        goal: (...) float32 of n elements, of unit norm.

    Returns:
        (B,) float32 in [-1, 1], up to rounding; float64 of a float64 latent, which takes the reference.

    Raises:
        ValueError: the sizes differ.
    """
    if latent.shape[1:].numel() != goal.numel():
        raise ValueError(f"latents of shape {tuple(latent.shape[1:])} do not match a goal of {tuple(goal.shape)}")
    if not runs_triton(latent, goal) or latent.numel() == 0:
        return latent_cosine_reference(latent, goal)
    return _launch(latent.flatten(1).contiguous(), goal.flatten().float().contiguous())


def _launch(latent: Tensor, goal: Tensor) -> Tensor:
    rows, size = latent.shape
    blocks = -(-size // BLOCK)
    splits = min(blocks, MAX_SPLITS)
    per_split = -(-blocks // splits)
    splits = -(-blocks // per_split)
    partial = torch.empty((rows, 2, splits), dtype=torch.float32, device=latent.device)
    cosine = torch.empty((rows,), dtype=torch.float32, device=latent.device)
    _partial_sums[(rows, splits)](latent, goal, partial, size, per_split, BLOCK=BLOCK, num_warps=4)
    _finish[(rows,)](partial, cosine, splits, SPLITS=MAX_SPLITS, num_warps=4)
    return cosine


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _partial_sums(latent, goal, partial, size, per_split, BLOCK: tl.constexpr):
        """Program (row, split): the dot product and the sum of squares over its blocks, to partial[row, :, split]."""
        row = tl.program_id(0).to(tl.int64)
        split = tl.program_id(1)
        dot = tl.zeros([BLOCK], tl.float32)
        square = tl.zeros([BLOCK], tl.float32)
        for block in range(per_split):
            offset = (split * per_split + block) * BLOCK + tl.arange(0, BLOCK)
            inside = offset < size
            x = tl.load(latent + row * size + offset, mask=inside, other=0.0).to(tl.float32)
            y = tl.load(goal + offset, mask=inside, other=0.0)
            dot += x * y
            square += x * x
        splits = tl.num_programs(1)
        tl.store(partial + row * 2 * splits + split, tl.sum(dot))
        tl.store(partial + row * 2 * splits + splits + split, tl.sum(square))

    @triton.jit
    def _finish(partial, cosine, splits, SPLITS: tl.constexpr):
        """Program (row): adds up the partial sums, in a fixed order, and divides."""
        row = tl.program_id(0).to(tl.int64)
        split = tl.arange(0, SPLITS)
        dot = tl.sum(tl.load(partial + row * 2 * splits + split, mask=split < splits, other=0.0))
        square = tl.sum(tl.load(partial + row * 2 * splits + splits + split, mask=split < splits, other=0.0))
        tl.store(cosine + row, tl.where(square > 0, dot / tl.sqrt(tl.where(square > 0, square, 1.0)), 0.0))
