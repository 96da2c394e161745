"""The text and image encoder's towers beside the library's modules."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from genreward_fast.encoders.clip_network import ImageTower, TextTower
from genreward_fast.kernels.precision import exact_products

VISION: dict[str, Any] = {"image_size": 48, "patch_size": 16, "width": 48, "head_width": 16, "layers": 3}
TEXT: dict[str, Any] = {"context_length": 11, "vocab_size": 90, "width": 32, "heads": 2, "layers": 3}
CONFIGS: dict[str, dict[str, Any]] = {
    "usual": {"embed_dim": 20, "vision_cfg": VISION, "text_cfg": TEXT},
    "layer scale": {
        "embed_dim": 20,
        "vision_cfg": VISION | {"ls_init_value": 0.1, "patch_size": 8, "mlp_ratio": 2.5},
        "text_cfg": TEXT | {"ls_init_value": 0.1, "layers": 1},
    },
}


def model(config: dict[str, Any]) -> Any:
    """Random weights, in norms, biases and layer scales as well, so that a part left out would show."""
    seed = torch.seed() % 2**31
    print(f"seed {seed}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made = open_clip.CLIP(**deepcopy(config))
        for name, parameter in made.named_parameters():
            if "ls_" in name:
                nn.init.uniform_(parameter, 0.1, 1)
            elif parameter.ndim == 1:
                nn.init.normal_(parameter, 1.0 if "ln_" in name and name.endswith("weight") else 0.0, 0.1)
    return made.eval().requires_grad_(False)


def pictures(batch: int) -> Tensor:
    return torch.randn(batch, 3, 48, 48).contiguous(memory_format=torch.channels_last)


def sentences(count: int) -> Tensor:
    """Tokens that end, with the largest of all, in different places."""
    tokens = torch.randint(1, 88, (count, 11))
    for row, end in zip(tokens, torch.randint(1, 11, (count,)).tolist()):
        row[end], row[end + 1 :] = 89, 0
    return tokens


def towers(library: Any, dtype: torch.dtype = torch.float32) -> tuple[ImageTower, TextTower]:
    image, text = ImageTower.of(library.visual, dtype), TextTower.of(library, dtype)
    assert image is not None
    assert text is not None
    return image, text


def relative_rms(value: Tensor, expected: Tensor) -> float:
    difference = value.double() - expected.double()
    return (difference.square().mean().sqrt() / expected.double().square().mean().sqrt()).item()


def results(library: Any, count: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[tuple]:
    """Ours in `dtype` and the library's in float32, of images and of sentences."""
    library = library.to(device)
    pixels, tokens = pictures(count).to(device), sentences(count).to(device)
    image, text = towers(library, dtype)
    with torch.no_grad():
        embedded = library.token_embedding(tokens).to(dtype)
        return [
            (image(pixels.to(dtype)), library.visual(pixels)),
            (text(embedded, tokens.argmax(-1)), library.encode_text(tokens)),
        ]


def cosine(value: Tensor, expected: Tensor) -> float:
    """Of all rows as one vector: a row alone may be a small difference of larger ones, and show their roundings."""
    return functional.cosine_similarity(value.double().flatten(), expected.double().flatten(), dim=0).item()


def check(name: str, count: int, device: str = "cpu") -> None:
    for ours, expected in results(model(CONFIGS[name]), count, device=device):
        assert ours.shape == expected.shape == (count, 20)
        assert relative_rms(ours, expected) < 1e-5


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("count", [1, 3, 5])
def test_are_the_library_s_towers(name: str, count: int) -> None:
    check(name, count)


@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16(name: str) -> None:
    for ours, expected in results(model(CONFIGS[name]), 16, torch.bfloat16):
        assert ours.dtype == torch.bfloat16
        assert cosine(ours, expected) >= 0.9999


@pytest.mark.gpu
@pytest.mark.parametrize("name", CONFIGS)
def test_on_cuda(name: str) -> None:
    with exact_products():
        check(name, 5, "cuda")
        for dtype in (torch.bfloat16, torch.float16):
            for ours, expected in results(model(CONFIGS[name]), 16, dtype, "cuda"):
                assert cosine(ours, expected) >= 0.9999


def test_have_no_state_and_leave_the_library_s_alone() -> None:
    library = model(CONFIGS["usual"])
    before = deepcopy(library.state_dict())
    made = towers(library)
    assert all(tower.state_dict() == {} for tower in made)
    results(library, 2)
    assert all(torch.equal(value, before[name]) for name, value in library.state_dict().items())


@pytest.mark.parametrize(
    ("vision", "text", "quick"),
    [
        ({"pool_type": "avg"}, {"pool_type": "last"}, False),
        ({"no_ln_pre": True}, {"no_causal_mask": True}, False),
        ({"attentional_pool": True, "attn_pooler_heads": 2}, {"proj_bias": True}, False),
        ({"qk_norm": True}, {"qk_norm": True}, False),
        ({}, {}, True),
    ],
)
def test_none_for_what_they_do_not_compute(vision: dict[str, Any], text: dict[str, Any], quick: bool) -> None:
    made = open_clip.CLIP(20, VISION | vision, TEXT | text, quick_gelu=quick)
    assert ImageTower.of(made.visual, torch.float32) is None
    assert TextTower.of(made, torch.float32) is None
