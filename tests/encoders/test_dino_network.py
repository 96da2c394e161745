"""The image encoder's network beside the library's module."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from genreward_fast.encoders import transformer_blocks
from genreward_fast.encoders.dino_network import ClassTokenNetwork
from genreward_fast.encoders.image import ImageEncoder
from genreward_fast.kernels.precision import exact_products
from genreward_fast.kernels.triton_support import INTERPRETED

SMALL: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_register_tokens": 4,
    "use_gated_mlp": True,
    "hidden_act": "silu",
    "initializer_range": 0.1,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "gated": SMALL,
    "plain": SMALL | {"use_gated_mlp": False, "hidden_act": "gelu", "num_register_tokens": 0, "patch_size": 8},
    "every bias": SMALL | {"key_bias": True, "layer_norm_eps": 1e-3, "num_register_tokens": 1},
    "no bias": SMALL | {"query_bias": False, "value_bias": False, "proj_bias": False, "mlp_bias": False},
    "one layer": SMALL | {"num_hidden_layers": 1, "rope_theta": 50.0},
}


CALM = {"initializer_range": 0.03}
"""With larger weights a network so narrow multiplies roundings: the library's own bfloat16 is then as far away."""


def model(config: dict[str, Any]) -> DINOv3ViTModel:
    """Random weights, in norms, biases and layer scales as well, so that a part left out would show."""
    seed = torch.seed() % 2**31
    print(f"seed {seed}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        vit: Any = DINOv3ViTModel(DINOv3ViTConfig(**config))
        for name, parameter in vit.named_parameters():
            if "lambda" in name:
                nn.init.uniform_(parameter, 0.1, 1)
            elif parameter.ndim == 1 or "token" in name:
                nn.init.normal_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.3)
    return vit.eval().requires_grad_(False)


def pictures(batch: int, size: int, device: str = "cpu") -> Tensor:
    return torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)


def network(vit: Any, size: int, dtype: torch.dtype = torch.float32) -> ClassTokenNetwork:
    made = ClassTokenNetwork.of(vit, size, dtype)
    assert made is not None
    return made


def relative_rms(value: Tensor, expected: Tensor) -> float:
    difference = value.double() - expected.double()
    return (difference.square().mean().sqrt() / expected.double().square().mean().sqrt()).item()


def cosine(value: Tensor, expected: Tensor) -> float:
    """Of all rows as one vector: a row alone may be a small difference of larger ones, and show their roundings."""
    return functional.cosine_similarity(value.double().flatten(), expected.double().flatten(), dim=0).item()


def check(name: str, batch: int, size: int, device: str = "cpu") -> None:
    vit: Any = model(CONFIGS[name]).to(device)
    pixels = pictures(batch, size, device)
    with torch.no_grad():
        expected = vit(pixel_values=pixels).pooler_output
        ours = network(vit, size)(pixels)
        assert ours.shape == expected.shape
        assert relative_rms(ours, expected) < 1e-5
        # Of pictures in any memory format, and the same again: nothing that it keeps has changed.
        assert torch.equal(network(vit, size)(pixels.contiguous()), ours)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("batch", "size"), [(1, 64), (3, 16), (5, 112)])
def test_is_the_library_s_class_token(name: str, batch: int, size: int) -> None:
    check(name, batch, size)


@pytest.mark.parametrize("name", ["gated", "plain"])
def test_on_triton_is_the_library_s_class_token(name: str) -> None:
    if not INTERPRETED:
        pytest.skip("without TRITON_INTERPRET=1 a CPU has one path alone")
    check(name, 2, 32)


@pytest.mark.parametrize("name", ["gated", "plain"])
def test_on_triton_with_activations_in_their_products(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not INTERPRETED:
        pytest.skip("without TRITON_INTERPRET=1 a CPU has one path alone")
    vit: Any = model(CONFIGS[name] | CALM)
    pixels, fused, sizes = pictures(2, 32), transformer_blocks.activated_linear, []

    def counted(x: Tensor, *others: Any, **ways: Any) -> Tensor:
        sizes.append(len(x))
        return fused(x, *others, **ways)

    monkeypatch.setattr(transformer_blocks, "activated_linear", counted)
    monkeypatch.setitem(transformer_blocks.FUSED_ROWS, name, 3)
    with torch.no_grad():
        ours = network(vit, 32, torch.float16)(pixels.half())
        expected = vit(pixel_values=pixels).pooler_output
        assert cosine(ours, expected) >= 0.9999
        assert len(sizes) == 2  # the last block has two rows
        monkeypatch.setitem(transformer_blocks.FUSED_ROWS, name, None)
        assert cosine(network(vit, 32, torch.float16)(pixels.half()), expected) >= 0.9999
    assert len(sizes) == 2


def test_in_the_interpreter(run_interpreted: Callable[[str, str, float], None]) -> None:
    run_interpreted(__file__, "on_triton", 300)


@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16(name: str) -> None:
    vit: Any = model(CONFIGS[name] | CALM)
    pixels = pictures(16, 64)
    with torch.no_grad():
        ours = network(vit, 64, torch.bfloat16)(pixels.bfloat16())
        expected = vit(pixel_values=pixels).pooler_output
    assert ours.dtype == torch.bfloat16
    assert cosine(ours, expected) >= 0.9999


@pytest.mark.gpu
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("batch", [4, 16])
def test_on_cuda(name: str, batch: int) -> None:
    vit: Any = model(CONFIGS[name] | CALM).cuda()
    pixels = pictures(batch, 224, "cuda")
    with torch.no_grad(), exact_products():
        check(name, batch, 112, "cuda")
        expected = vit(pixel_values=pixels).pooler_output
        for dtype in (torch.bfloat16, torch.float16):
            ours = network(vit, 224, dtype)(pixels.to(dtype))
            assert cosine(ours, expected) >= 0.9999


def test_launches() -> None:
    """Queries, keys and values are one product, as are gate and up; the last block has its queries apart."""
    vit: Any = model(SMALL)
    made, pixels = network(vit, 64), pictures(2, 64)
    with torch.profiler.profile() as profile, torch.no_grad():
        made(pixels)
    calls = {event.key: event.count for event in profile.key_averages()}
    assert calls["aten::addmm"] == 3 * 4 + 1
    assert "aten::linear" not in calls
    assert calls["aten::scaled_dot_product_attention"] == 3
    assert calls["aten::layer_norm"] == 3 * 2 + 1
    assert not any("softmax" in name or "conv" in name for name in calls)


def test_the_library_s_module_stays_as_it_is() -> None:
    vit: Any = model(SMALL)
    before = deepcopy(vit.state_dict())
    made = network(vit, 64)
    assert made.state_dict() == {}
    with torch.no_grad():
        made(pictures(2, 64))
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())


@pytest.mark.parametrize("setting", [{"hidden_act": "relu"}, {"use_gated_mlp": False}])
def test_what_it_does_not_compute_is_the_library_s(setting: dict[str, Any]) -> None:
    vit: Any = model(SMALL | setting)
    assert ClassTokenNetwork.of(vit, 64, torch.float32) is None
    encoder = ImageEncoder(deepcopy(vit), size=64)
    frames = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    assert encoder.fast is None
    with torch.no_grad():
        expected = vit(pixel_values=encoder.preprocess(frames)).pooler_output
    assert relative_rms(encoder(frames), expected) < 1e-5


def test_an_encoder_s_state_is_the_library_s() -> None:
    vit: Any = model(SMALL)
    encoder = ImageEncoder(deepcopy(vit), size=64)
    assert encoder.fast is not None
    assert encoder.state_dict().keys() == {f"vit.{name}" for name in vit.state_dict()}
