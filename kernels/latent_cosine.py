"""The cosine of a batch of latents with one goal latent that never changes."""

from __future__ import annotations

import torch
from torch import Tensor

from genreward_fast.kernels.rssm_tiles import launch_options
from genreward_fast.kernels.triton_support import HAS_TRITON, runs_triton, wide

BLOCK = 1024
MAX_SPLITS = 256
PROGRAMS = 2048
"""More than the largest chips run at once. Beyond it a program takes several rows, for which it reads the goal once."""
MAX_ROWS = 8
"""Rows of a program."""


def latent_cosine_reference(latent: Tensor, goal: Tensor) -> Tensor:
    """What `latent_cosine` computes, in plain float32 PyTorch."""
    flat = wide(latent).flatten(1)
    # sum() adds pairwise; a matrix product may add 10^5 terms one by one and lose two digits
    dot = (flat * wide(goal).flatten()).sum(dim=1)
    norm = flat.square().sum(dim=1).sqrt()
    return dot / torch.where(norm > 0, norm, 1.0)


def centred(latent: Tensor) -> Tensor:
    """(..., C, T, H, W) float32 of latents without their means over T: what moves, and not the scene it moves in."""
    latent = latent.float()
    return latent - latent.mean(-3, keepdim=True)


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
    per_program = max(1, min(MAX_ROWS, rows * splits // PROGRAMS))
    options = launch_options(latent.device)
    # The first kernel must not start before all that came before has written what it writes.
    _partial_sums[(-(-rows // per_program), splits)](
        latent, goal, partial, rows, size, per_program, per_split, BLOCK=BLOCK, PDL=options["PDL"], num_warps=4
    )
    _finish[(rows,)](partial, cosine, splits, SPLITS=MAX_SPLITS, num_warps=4, **options)
    return cosine


if HAS_TRITON:
    import triton
    import triton.language as tl

    from genreward_fast.kernels.rssm_tiles import wait

    # Specialised on how many rows there are, it would be another kernel, which may add up in another order.
    @triton.jit(do_not_specialize=["rows", "per_program", "per_split"])
    def _partial_sums(
        latent, goal, partial, rows, size, per_program, per_split, BLOCK: tl.constexpr, PDL: tl.constexpr
    ):  # fmt: skip
        """Program (rows, split): each row's dot product and sum of squares over the split's blocks, to
        partial[row, :, split]."""
        wait(PDL)
        first = tl.program_id(0).to(tl.int64) * per_program
        end = tl.minimum(first + per_program, rows)
        split = tl.program_id(1)
        splits = tl.num_programs(1)
        offset = split * per_split * BLOCK + tl.arange(0, BLOCK)
        inside = offset < size
        towards = tl.load(goal + offset, mask=inside, other=0.0)
        following = tl.load(latent + first * size + offset, mask=inside, other=0.0)
        for row in range(first, end):
            x = following.to(tl.float32)
            # Asked for before the sums, whose time hides the way from memory.
            following = tl.load(latent + (row + 1) * size + offset, mask=inside & (row + 1 < end), other=0.0)
            dot = x * towards
            square = x * x
            for block in range(1, per_split):
                more = offset + block * BLOCK
                x = tl.load(latent + row * size + more, mask=more < size, other=0.0).to(tl.float32)
                dot += x * tl.load(goal + more, mask=more < size, other=0.0)
                square += x * x
            tl.store(partial + row * 2 * splits + split, tl.sum(dot))
            tl.store(partial + row * 2 * splits + splits + split, tl.sum(square))

    @triton.jit
    def _finish(partial, cosine, splits, SPLITS: tl.constexpr, PDL: tl.constexpr):
        """Program (row): adds up the partial sums, in a fixed order, and divides."""
        wait(PDL)
        row = tl.program_id(0).to(tl.int64)
        split = tl.arange(0, SPLITS)
        dot = tl.sum(tl.load(partial + row * 2 * splits + split, mask=split < splits, other=0.0))
        square = tl.sum(tl.load(partial + row * 2 * splits + splits + split, mask=split < splits, other=0.0))
        tl.store(cosine + row, tl.where(square > 0, dot / tl.sqrt(tl.where(square > 0, square, 1.0)), 0.0))
