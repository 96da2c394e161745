"""Fused blocks compute what the library's do."""

import copy

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel

from genreward_fast.encoders.architectures import seeded
from genreward_fast.goals.approximation import approximate
from genreward_fast.goals.finetune.conditioning import Conditioning
from genreward_fast.goals.fused_blocks import fuse_blocks
from genreward_fast.goals.lora import add_lora
from genreward_fast.goals.video_model_configs import TRANSFORMER


def make_model(seed: int, **changes):
    """With norms and biases drawn as well: initial ones would hide a wrong order."""
    with seeded(seed):
        model = CogVideoXTransformer3DModel(**(TRANSFORMER["tiny"] | changes)).eval()
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.3)
    return model


def make_inputs(model, generator, batch=2, frames=3, side=4, timestep=500):
    latents, image = (torch.randn(batch, frames, 16, side, side, generator=generator) for _ in range(2))
    text = torch.randn(batch, 12, 24, generator=generator)
    conditioning = Conditioning(model.config, {"scaling_factor": 0.7, "latent_channels": 16})
    timesteps = torch.full((batch,), timestep)
    return conditioning.model_inputs(latents, image, text, timesteps, torch.float32)


def relative_error(value, reference):
    return float((value - reference).norm() / reference.norm())


@torch.no_grad()
@pytest.mark.parametrize("attention", ["auto", "math"])
@pytest.mark.parametrize(
    "changes",
    [
        {"num_layers": 3},
        {"attention_bias": False, "num_attention_heads": 3},
        {"use_rotary_positional_embeddings": False},
        {"activation_fn": "gelu"},
    ],
)
def test_fused_blocks_are_the_librarys(fresh_generator, changes, attention):
    model = make_model(0, **changes)
    inputs = make_inputs(model, fresh_generator)
    expected = model(**inputs)[0]
    fuse_blocks(model, attention, compiled=False)
    assert relative_error(model(**inputs)[0], expected) < 1e-5


@torch.no_grad()
def test_adapters_take_part(fresh_generator):
    model = make_model(0)
    inputs = make_inputs(model, fresh_generator)
    plain = model(**inputs)[0]
    add_lora(model, 4)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(0, 0.1, generator=fresh_generator)
    expected = model(**inputs)[0]
    assert relative_error(plain, expected) > 1e-3
    fuse_blocks(model, "auto", compiled=False)
    assert relative_error(model(**inputs)[0], expected) < 1e-5


@torch.no_grad()
def test_every_second_attention_is_broadcast_between_its_timesteps(fresh_generator):
    model = make_model(0)
    fuse_blocks(model, "auto", compiled=False)
    computed = []
    model.transformer_blocks[0].attn1.to_out[0].register_forward_hook(lambda *_: computed.append(timestep))
    approximate(model, "attention-broadcast", 0.0)
    for timestep in (999, 900, 850, 800, 700, 600, 500, 100, 50):
        model(**make_inputs(model, fresh_generator, timestep=timestep))
    assert computed == [999, 900, 850, 700, 500, 100, 50]


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("approximation", ["none", "attention-broadcast"])
def test_the_parts_are_compiled_once_for_all_blocks(fresh_generator, approximation):
    from torch._dynamo.utils import counters

    model = make_model(0, num_layers=10)
    fused = copy.deepcopy(model)
    fuse_blocks(fused, "math")
    for each in (model, fused):
        approximate(each, approximation, 0.0)
    torch._dynamo.reset()
    counters.clear()
    for timestep in (900, 500, 480, 460):
        inputs = make_inputs(model, fresh_generator, timestep=timestep)
        assert relative_error(fused(**inputs)[0], model(**inputs)[0]) < 1e-5
    assert counters["stats"]["unique_graphs"] == 6  # four parts, and two for the layout of the first block's tokens
