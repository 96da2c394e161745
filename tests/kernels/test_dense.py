"""Linear layers whose gradients go through kernels, beside float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from genreward_fast.agent.dense import dense, linear

EPS = 1e-4
DTYPES = [torch.float32, torch.bfloat16]
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1.5e-2}


def made(shape, inputs, outputs, generator, dtype, device):
    x = torch.randn(*shape, inputs, generator=generator).to(dtype)
    weight = (torch.randn(outputs, inputs, generator=generator) / inputs**0.5).to(dtype)
    bias = torch.randn(outputs, generator=generator).to(dtype).float()  # so that rounding it changes nothing
    return [value.to(device).requires_grad_() for value in (x, weight, bias)]


def check(found, expected, leaves, grad, limit, relative_rms):
    """Results and gradients; `expected` comes from float64 copies of the leaves."""
    (y, parts), (exact, exact_leaves) = found, expected
    grads = torch.autograd.grad(y, leaves, grad)
    exact_grads = torch.autograd.grad(exact, exact_leaves, grad.cpu().double()[..., : exact.shape[-1]])
    assert relative_rms(parts.detach().cpu(), exact.detach()) < limit
    for leaf, value, other in zip(leaves, grads, exact_grads):
        assert value.shape == leaf.shape
        assert value.dtype == leaf.dtype
        assert relative_rms(value.cpu(), other) < limit


@pytest.mark.parametrize("shape", [(7,), (2, 300), (2100,)])
@pytest.mark.parametrize(("inputs", "outputs", "more"), [(24, 31, 1), (16, 16, 0), (5, 1, 0), (8, 3, 5)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_triton_linear(shape, inputs, outputs, more, dtype, triton_device, fresh_generator, relative_rms):
    leaves = made(shape, inputs, outputs, fresh_generator, dtype, triton_device)
    x, weight, bias = leaves
    zeros = torch.zeros(more, inputs, dtype=dtype, device=triton_device)
    y = linear(x, weight, bias, bias.detach().to(dtype), zeros)
    assert y.shape == (*shape, outputs + more)
    assert not y[..., outputs:].any()
    exact_leaves = [leaf.detach().cpu().double().requires_grad_() for leaf in leaves]
    # With a mean, so that the bias's gradient, one sum where there is one output, is never next to nothing.
    grad = (1 + torch.randn(y.shape, generator=fresh_generator)).to(dtype).to(triton_device)
    grad[..., outputs:] = 0
    expected = functional.linear(*exact_leaves), exact_leaves
    check((y, y[..., :outputs]), expected, leaves, grad, LIMITS[dtype], relative_rms)


@pytest.mark.parametrize("shape", [(7,), (2, 300), (2100,)])
@pytest.mark.parametrize(("inputs", "groups", "size"), [(24, 1, 30), (16, 3, 16)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_triton_dense(shape, inputs, groups, size, dtype, triton_device, poisoned, fresh_generator, relative_rms):
    leaves = made(shape, inputs, groups * size, fresh_generator, dtype, triton_device)
    scale = (1 + 0.3 * torch.randn(groups, size, generator=fresh_generator)).to(triton_device).requires_grad_()
    leaves.append(scale)
    y = dense(*leaves[:3], leaves[2].detach().to(dtype), scale, EPS)
    exact_leaves = [leaf.detach().cpu().double().requires_grad_() for leaf in leaves]
    before = functional.linear(*exact_leaves[:3]).unflatten(-1, (groups, size))
    normed = before * (before.square().mean(-1, keepdim=True) + EPS).rsqrt() * exact_leaves[3]
    expected = functional.silu(normed).flatten(-2), exact_leaves
    # The gradient passes through values of the dtype, and a norm takes out what they have in common.
    grad = torch.randn(y.shape, generator=fresh_generator).to(dtype).to(triton_device)
    check((y, y), expected, leaves, grad, 2 * LIMITS[dtype], relative_rms)


def test_on_triton_takes_parts_of_rows(triton_device, fresh_generator, relative_rms):
    x = torch.randn(20, 32, generator=fresh_generator).to(triton_device)
    leaves = made((1,), 16, 24, fresh_generator, torch.float32, triton_device)[1:]
    scale = torch.ones(24, device=triton_device)
    for function, more in ((linear, ()), (dense, (scale, EPS))):
        found = []
        for part in (x[:, 16:], x[:, 16:].contiguous()):
            y = function(part, *leaves, leaves[1].detach(), *more)
            found.append(torch.cat([y.flatten(), *(g.flatten() for g in torch.autograd.grad(y.sum(), leaves))]))
        assert relative_rms(*(value.detach().cpu() for value in found)) < 1e-6


@pytest.mark.parametrize("function", [linear, dense])
def test_without_triton_the_bias_gets_its_gradient(function, fresh_generator):
    leaves = made((5,), 8, 6, fresh_generator, torch.bfloat16, "cpu")
    more = () if function is linear else (torch.ones(6), EPS)
    y = function(*leaves, leaves[2].detach().bfloat16(), *more)
    assert all(g.dtype == leaf.dtype for g, leaf in zip(torch.autograd.grad(y.sum(), leaves), leaves))


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)
