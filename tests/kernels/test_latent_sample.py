from __future__ import annotations

import pytest
import torch

from genreward_fast.kernels import latent_sample as module
from genreward_fast.kernels.latent_sample import latent_sample, latent_sample_backward

UNIMIX = 0.01
SHAPES = [(1, 1), (1, 4), (5, 3, 7), (33, 16), (4, 32, 16), (3, 2, 96), (2, 256)]
DTYPES = [torch.float32, torch.bfloat16]
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def exact_probs(logits):
    """In float64."""
    return logits.cpu().double().softmax(-1) * (1 - UNIMIX) + UNIMIX / logits.shape[-1]


def check_draws(shape, dtype, device, generator):
    logits = (3 * torch.randn(shape, generator=generator)).to(dtype).to(device)
    uniform = torch.rand(shape[:-1], generator=generator)
    index, onehot = latent_sample(logits, uniform.to(device), UNIMIX)
    assert index.dtype == torch.int64
    assert onehot.dtype == dtype
    assert torch.equal(onehot.cpu(), torch.nn.functional.one_hot(index.cpu(), shape[-1]).to(dtype))
    upper = exact_probs(logits).cumsum(-1)
    lower = upper - exact_probs(logits)
    picked_upper, picked_lower = (x.gather(-1, index.cpu().unsqueeze(-1)).squeeze(-1) for x in (upper, lower))
    # The number lies in the interval of the class drawn, whose ends are known to float32's precision.
    assert (picked_lower <= uniform + 1e-5).all()
    assert (uniform <= picked_upper + 1e-5).all()


def check_gradient(shape, dtype, device, generator, relative_rms):
    by_draw, more, by_logits, logits = (torch.randn(shape, generator=generator).to(dtype).to(device) for _ in range(4))
    found = torch.full_like(logits, float("nan"))
    latent_sample_backward(by_draw, more, by_logits, logits, UNIMIX, found)
    leaf = logits.cpu().double().requires_grad_()
    through = by_draw.cpu().double() + more.cpu().double()
    probs = leaf.softmax(-1) * (1 - UNIMIX) + UNIMIX / shape[-1]
    expected = torch.autograd.grad(probs, leaf, through)[0] + by_logits.cpu().double()
    assert relative_rms(found.cpu(), expected) < LIMITS[dtype]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_references(shape, dtype, fresh_generator, relative_rms):
    check_draws(shape, dtype, "cpu", fresh_generator)
    check_gradient(shape, dtype, "cpu", fresh_generator, relative_rms)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_triton_draws_from_the_distribution(shape, dtype, triton_device, poisoned, fresh_generator):
    check_draws(shape, dtype, triton_device, fresh_generator)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_triton_gradient(shape, dtype, triton_device, poisoned, fresh_generator, relative_rms):
    check_gradient(shape, dtype, triton_device, fresh_generator, relative_rms)


def test_on_triton_ends_of_the_range(triton_device):
    logits = torch.tensor([[0.0, 5.0, -200.0], [300.0, 0.0, 0.0]], device=triton_device).repeat(2, 1)
    uniform = torch.tensor([0.0, 0.0, 0.9999, 0.9999], device=triton_device)
    index, onehot = latent_sample(logits, uniform, 0.0)
    assert index.tolist() == [0, 0, 1, 0]
    # The last class takes what rounding leaves of the sum.
    assert latent_sample(torch.zeros(1, 3, device=triton_device), torch.ones(1, device=triton_device), 0.0)[0] == 2
    assert onehot.sum(-1).tolist() == [1, 1, 1, 1]


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_compiles_for_every_chip(capability, dtype, compile_for):
    constants = {"ROWS": 32, "SIZE": 16}
    numbers = {"rows": "i32", "classes": "i32", "length": "i32", "stride": "i32", "unimix": "fp32"}
    signature = {"logits": f"*{dtype}", "uniform": "*fp32", "index": "*i64", "onehot": f"*{dtype}"} | numbers
    compile_for(module._forward, capability, signature, constants, num_warps=4)
    signature = dict.fromkeys(("by_draw", "more", "by_logits", "logits", "out"), f"*{dtype}") | numbers
    compile_for(module._backward, capability, signature, constants, num_warps=4)
