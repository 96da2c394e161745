from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal

from genreward_fast.kernels import policy_loss as module
from genreward_fast.kernels.policy_loss import (
    bounded_normal,
    bounded_normal_reference,
    policy_loss,
    policy_loss_reference,
)

MIN, MAX = 0.1, 1.0
# (steps, rows, actions)
SHAPES = [(1, 8, 1), (3, 5, 4), (15, 7, 3), (2, 70, 6), (2, 3, 39)]
DTYPES = [torch.float32, torch.bfloat16]
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def make(shape, more, dtype, generator, device="cpu"):
    """Raw outputs small and large, a batch-major action, returns, value, weight, scale, and a gradient."""
    steps, rows, size = shape
    raw = torch.randn(steps + more, rows, 2 * size, generator=generator)
    raw = raw * 10 ** (torch.rand(raw.shape, generator=generator) * 4 - 3.5)
    action = torch.randn(rows, steps, size, generator=generator)
    returns, grad = (torch.randn(steps, rows, generator=generator) for _ in range(2))
    value, weight = (torch.rand(steps + more, rows, generator=generator) for _ in range(2))
    inputs = raw.to(dtype), action, returns, value, weight, torch.tensor(1.7), grad
    raw, action, *rest = (x.to(device) for x in inputs)
    return raw, action.transpose(0, 1), *rest


def normal(raw):
    mean, stddev = raw.chunk(2, -1)
    return Normal(mean.tanh(), (MAX - MIN) * (stddev + 2).sigmoid() + MIN)


def exact(raw, action, returns, value, weight, scale, grad, entropy_scale):
    """All results and the gradient, in float64."""
    raw = raw.detach().cpu().double().requires_grad_()
    action, returns, value, weight, scale, grad = (
        x.cpu().double() for x in (action, returns, value, weight, scale, grad)
    )
    policy = normal(raw[: len(action)])
    entropy = policy.entropy().sum(-1)
    advantage = (returns - value[: len(action)]) / scale
    loss = -weight[: len(action)] * (policy.log_prob(action).sum(-1) * advantage + entropy_scale * entropy)
    found = torch.autograd.grad(loss, raw, grad)[0]
    return [x.detach() for x in (loss, entropy, policy.stddev.mean(-1), advantage, found)]


def check(function, shape, more, dtype, entropy_scale, device, generator, relative_rms):
    *inputs, grad = make(shape, more, dtype, generator, device)
    leaf = inputs[0].clone().requires_grad_()
    results = function(leaf, *inputs[1:], MIN, MAX, entropy_scale)
    assert [x.requires_grad for x in results] == [True, False, False, False]
    found = torch.autograd.grad(results[0], leaf, grad)[0]
    assert found.dtype == dtype
    expected = exact(*inputs, grad, entropy_scale)
    for i, (value, wanted) in enumerate(zip((*results, found), expected)):
        assert value.shape == wanted.shape
        assert relative_rms(value.detach().cpu(), wanted) < (LIMITS[dtype] if i == 4 else 1e-5), i
    assert not found[shape[0] :].any()


def check_normal(function, dtype, device, generator, relative_rms):
    for shape in ((1, 2), (5, 8), (3, 700, 6)):
        raw = torch.randn(shape, generator=generator) * 10 ** (torch.rand(shape, generator=generator) * 6 - 4)
        raw = raw.to(dtype).to(device)
        found, expected = function(raw, MIN, MAX), normal(raw.cpu().double())
        assert all(x.dtype == torch.float32 for x in found)
        assert torch.allclose(found[0].cpu().double(), expected.mean, rtol=1e-5, atol=0)
        assert torch.allclose(found[1].cpu().double(), expected.stddev, rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_references(shape, fresh_generator, relative_rms):
    check(policy_loss_reference, shape, 1, torch.float32, 0.3, "cpu", fresh_generator, relative_rms)
    check_normal(bounded_normal_reference, torch.float32, "cpu", fresh_generator, relative_rms)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_triton_loss(shape, more, dtype, triton_device, poisoned, fresh_generator, relative_rms):
    check(policy_loss, shape, more, dtype, 0.3, triton_device, fresh_generator, relative_rms)
    check(policy_loss, shape, more, dtype, 3e-4, triton_device, fresh_generator, relative_rms)


@pytest.mark.parametrize("dtype", DTYPES)
def test_on_triton_normal(dtype, triton_device, poisoned, fresh_generator, relative_rms):
    check_normal(bounded_normal, dtype, triton_device, fresh_generator, relative_rms)


def test_on_triton_normal_has_a_gradient_where_one_is_asked_for(triton_device):
    raw = torch.zeros(2, 6, device=triton_device, requires_grad=True)
    mean, stddev = bounded_normal(raw, MIN, MAX)
    assert torch.autograd.grad(mean.sum() + stddev.sum(), raw)[0].all()
    with torch.no_grad():
        assert torch.equal(bounded_normal(raw, MIN, MAX)[0], mean)


def test_on_triton_gradient_of_a_mean(triton_device, fresh_generator, relative_rms):
    *inputs, _ = make((4, 5, 3), 0, torch.float32, fresh_generator, triton_device)
    grads = []
    for function in (policy_loss, policy_loss_reference):
        leaf = inputs[0].clone().requires_grad_()
        loss = function(leaf, *inputs[1:], MIN, MAX, 0.1)[0].mean()
        grads.append(torch.autograd.grad(loss, leaf)[0].cpu())
    assert relative_rms(*grads) < 1e-5


def test_on_triton_nan_stays_in_its_row(triton_device, fresh_generator):
    *inputs, _ = make((4, 5, 3), 0, torch.float32, fresh_generator, triton_device)
    inputs[2][1, 2] = float("nan")
    leaf = inputs[0].requires_grad_()
    loss = policy_loss(*inputs, MIN, MAX, 0.1)[0]
    assert loss.isnan().nonzero().tolist() == [[1, 2]]
    assert torch.autograd.grad(loss.sum(), leaf)[0].isnan().any(-1).nonzero().tolist() == [[1, 2]]


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_compiles_for_every_chip(capability, dtype, compile_for):
    floats = {"min_std": "fp32", "spread": "fp32"}
    signature = {"raw": f"*{dtype}", "mean": "*fp32", "stddev": "*fp32", "count": "i32", "size": "i32"} | floats
    compile_for(module._normal, capability, signature, {"BLOCK": 512}, num_warps=4)
    floats |= {"entropy_scale": "fp32", "raw": f"*{dtype}", "action": "*fp32", "weight": "*fp32", "advantage": "*fp32"}
    numbers = dict.fromkeys(("by_step", "by_row", "count", "rows", "size"), "i32")
    constants = {"by_action": 1, **module._layout(4)}
    more = dict.fromkeys(("returns", "value", "scale", "loss", "entropy", "deviation"), "*fp32")
    compile_for(module._forward, capability, floats | numbers | more, constants, num_warps=2)
    more = {"grad": "*fp32", "step": "i32", "by_raw": f"*{dtype}", "total": "i32"}
    compile_for(module._backward, capability, floats | numbers | more, constants, num_warps=2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_large(dtype, fresh_generator, relative_rms):
    check(policy_loss, (15, 1024, 4), 1, dtype, 3e-4, "cuda", fresh_generator, relative_rms)
