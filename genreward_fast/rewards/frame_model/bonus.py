"""A bonus for frames that are new: random network distillation (Burda et al., arXiv 1810.12894)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from genreward_fast.rewards.feature_norm import FeatureNorm

OUTPUTS, CHANNELS = 512, 64
LIMIT = 5.0
"""Beyond this many deviations an input is cut off (RND, section 2.4)."""


class NoveltyBonus(nn.Module):
    """How badly a trained network predicts what a random, fixed one says of a frame, in deviations of that error.

    Both see the vectors of the frame's codes, each number standardised over the experience of the learning and cut off
    at ±5. `update` never waits for the device.

    Attributes:
        codebook: (vocabulary, C), the vector of each code.
        target: the network that is fixed.
        predictor: the one that learns.
    """

    codebook: Tensor

    def __init__(self, codebook: Tensor, grid: int, *, lr: float, device: torch.device | str, seed: int = 0):
        super().__init__()
        size = codebook.shape[1]
        generator = torch.Generator().manual_seed(seed)  # on the CPU: the same weights on every device
        self.grid = grid
        self.target = _network(size, grid, 0, generator).requires_grad_(False)
        self.predictor = _network(size, grid, 2, generator)
        self.input_norm = FeatureNorm(size * grid**2)
        self.error_norm = FeatureNorm(1)
        self.register_buffer("codebook", codebook.detach().float().cpu().clone(), persistent=False)
        self.to(device)
        cuda = self.codebook.is_cuda
        self._optimizer = torch.optim.Adam(self.predictor.parameters(), lr=lr, fused=cuda, capturable=cuda)

    @torch.no_grad()
    def score(self, codes: Tensor) -> Tensor:
        """(..., grid²) int64 codes of frames to (...) float32."""
        error = self._error(self._vectors(codes.flatten(0, -2)))
        return (error / self.error_norm.deviation).unflatten(0, codes.shape[:-1])

    def update(self, codes: Tensor) -> dict[str, Tensor]:
        """One step of learning on (n, grid²) codes; 0-d metrics on the device."""
        vectors = self._vectors(codes)
        self.input_norm.observe(vectors)
        error = self._error(vectors)
        self.error_norm.observe(error.detach().unsqueeze(1))
        loss = error.mean()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        return {"rnd/loss": loss.detach(), "rnd/deviation": self.error_norm.deviation.squeeze(0).clone()}

    def _vectors(self, codes: Tensor) -> Tensor:
        """(n, grid²) to (n, grid² · C)."""
        return self.codebook[codes].flatten(1)

    def _error(self, vectors: Tensor) -> Tensor:
        """(n,) mean squared differences between the two networks' outputs."""
        inputs = self.input_norm(vectors).clamp(-LIMIT, LIMIT)
        inputs = inputs.unflatten(1, (self.grid, self.grid, -1)).permute(0, 3, 1, 2)
        return (self.predictor(inputs) - self.target(inputs)).square().mean(1)

    def get_extra_state(self) -> dict[str, Any]:
        """What `state_dict` holds besides parameters and buffers."""
        return {"optimizer": self._optimizer.state_dict()["state"]}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        # The groups hold this device's settings, not those of the device that the state was saved on.
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})


def _network(size: int, grid: int, further: int, generator: torch.Generator) -> nn.Sequential:
    """Two convolutions and a linear layer, then `further` hidden ones; orthogonal weights of gain √2, biases 0."""
    half = (grid + 1) // 2
    layers: list[nn.Module] = [
        nn.utils.skip_init(nn.Conv2d, size, CHANNELS, 3, padding=1),
        nn.LeakyReLU(),
        nn.utils.skip_init(nn.Conv2d, CHANNELS, CHANNELS, 3, stride=2, padding=1),
        nn.LeakyReLU(),
        nn.Flatten(),
        nn.utils.skip_init(nn.Linear, CHANNELS * half**2, OUTPUTS),
    ]
    for _ in range(further):
        layers += [nn.ReLU(), nn.utils.skip_init(nn.Linear, OUTPUTS, OUTPUTS)]
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.orthogonal_(layer.weight, 2**0.5, generator=generator)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)
