from __future__ import annotations

import pytest
import torch

from genreward_fast.encoders.clip import TextImageEncoder
from genreward_fast.encoders.presets import EncoderConfig, Encoders


@pytest.fixture(scope="session")
def encoders() -> Encoders:
    return Encoders(EncoderConfig(preset="tiny"))


@pytest.fixture(scope="session")
def encoder(encoders: Encoders) -> TextImageEncoder:
    return encoders.text_image


@pytest.fixture
def video() -> torch.Tensor:
    """(10, 48, 64, 3) uint8, every frame with a grey of its own and noise."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 30, (10, 48, 64, 3), generator=generator)
    return (noise + torch.arange(10).view(10, 1, 1, 1) * 20).to(torch.uint8)
