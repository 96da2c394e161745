import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from torch.utils.flop_counter import FlopCounterMode

from genreward_fast.goals.finetune.conditioning import Conditioning
from genreward_fast.goals.flops import matmul_flops_per_second, training_flops, transformer_flops
from genreward_fast.goals.video_model_configs import TRANSFORMER


@pytest.mark.parametrize("patch_t", [None, 2])
def test_the_formula_counts_nearly_all(patch_t):
    config = TRANSFORMER["tiny"] | {"num_attention_heads": 8, "attention_head_dim": 32, "patch_size_t": patch_t}
    config |= {"sample_height": 32, "sample_width": 32}
    with torch.device("meta"):
        model = CogVideoXTransformer3DModel(**config)
        inputs = Conditioning(model.config, {"scaling_factor": 1.0, "latent_channels": 16}).model_inputs(
            torch.randn(1, 4, 16, 32, 32),
            torch.randn(1, 4, 16, 32, 32),
            torch.randn(1, 12, 24),
            torch.zeros(1, dtype=torch.int64),
            torch.float32,
        )
        with FlopCounterMode(display=False) as forward:
            loss = model(**inputs)[0].sum()
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    linear, attention = transformer_flops(model.config, 4, 32, 32)
    assert linear + attention == pytest.approx(forward.get_total_flops(), rel=0.05)
    total = forward.get_total_flops() + backward.get_total_flops()
    assert training_flops(linear, attention, all_weights=True) == pytest.approx(total, rel=0.2)
    assert training_flops(linear, attention, all_weights=False) == 2 * linear + 3 * attention


def test_the_full_model_is_as_large_as_it_should_be():
    with torch.device("meta"):
        model = CogVideoXTransformer3DModel(**TRANSFORMER["paper"])
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(5.57e9, rel=0.01)
    assert 2 * sum(transformer_flops(model.config, 13, 60, 90)) == pytest.approx(664e12, rel=0.01)


def test_the_limit_is_measured():
    assert matmul_flops_per_second(torch.device("cpu"), torch.float32, size=64, repeats=2) > 0
