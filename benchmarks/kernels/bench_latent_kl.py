"""Times the KL losses of the latents and their gradient at the agent's size."""

from __future__ import annotations

import torch
from comparing import Case, compare
from timing import arguments

from genreward_fast.kernels.latent_kl import latent_kl, latent_kl_reference

LATENTS, CLASSES = 32, 16  # of size 12M


def cases(rows: int, device: torch.device, dtype: torch.dtype) -> tuple[str, list[Case]]:
    posterior, prior = (torch.randn(rows, LATENTS, CLASSES, device=device).to(dtype) for _ in range(2))
    inputs = (posterior, prior, 0.01, 1.0)
    size = 2 * prior.nbytes
    return f"{rows}x{LATENTS}x{CLASSES}", [
        Case("latent_kl", latent_kl, latent_kl_reference, inputs, size + 16 * rows),
        Case("by the prior", latent_kl, latent_kl_reference, inputs, 2 * size + 4 * rows, by=1),
    ]


if __name__ == "__main__":
    compare("latent_kl", arguments(__doc__ or "", [1024]).parse_args(), cases)
