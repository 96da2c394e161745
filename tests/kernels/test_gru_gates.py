from __future__ import annotations

import pytest
import torch

from genreward_fast.kernels import gru_gates as module
from genreward_fast.kernels.gru_gates import gru_gates, gru_gates_backward, gru_gates_reference

SHAPES = [(1, 1, 7), (6, 3, 1), (3, 2, 5), (7, 8, 33), (16, 8, 256)]  # rows, blocks, units of a block
DTYPES = [torch.float32, torch.bfloat16]
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def inputs(shape, generator, dtype, device="cpu"):
    rows, blocks, width = shape
    size = blocks * width
    gates = 2 * torch.randn(rows, 3 * size, generator=generator)
    bias = torch.randn(3 * size, generator=generator)
    state, grad, more = torch.randn(3, rows, size, generator=generator)
    return [x.to(dtype).to(device) for x in (gates, bias, state, grad, more)]


def exact(gates, bias, state, grad, more, blocks):
    """The next state and the gradients by gates and state, in float64 by autograd, block by block."""
    gates, bias, state, grad, more = (x.cpu().double().requires_grad_() for x in (gates, bias, state, grad, more))
    pieces = []
    for values, old in zip((gates + bias).chunk(blocks, 1), state.chunk(blocks, 1)):
        reset, candidate, update = values.chunk(3, 1)
        u = torch.sigmoid(update - 1)
        pieces.append(u * torch.tanh(torch.sigmoid(reset) * candidate) + (1 - u) * old)
    new = torch.cat(pieces, 1)
    return [new.detach(), *torch.autograd.grad(new, (gates, state), grad + more)]


def check(shape, dtype, device, generator, relative_rms):
    values = inputs(shape, generator, dtype, device)
    gates, bias, state, grad, more = values
    new = gru_gates(gates, bias, state, shape[1])
    by_gates = torch.full_like(gates, float("nan"))
    by_state = gru_gates_backward(grad, more, gates, bias, state, shape[1], by_gates)
    for value, expected in zip((new, by_gates, by_state), exact(*values, shape[1])):
        assert value.dtype == dtype
        assert relative_rms(value.cpu(), expected) < LIMITS[dtype]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_references_are_the_gates(shape, dtype, fresh_generator, relative_rms):
    check(shape, dtype, "cpu", fresh_generator, relative_rms)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_triton_agrees_with_float64(shape, dtype, triton_device, poisoned, fresh_generator, relative_rms):
    check(shape, dtype, triton_device, fresh_generator, relative_rms)


def test_on_triton_writes_where_it_is_told(triton_device, fresh_generator):
    gates, bias, state, _, _ = inputs((5, 2, 9), fresh_generator, torch.float32, triton_device)
    buffer = torch.full((3, *state.shape), float("nan"), device=triton_device)
    wide = torch.cat([state, state], 1)
    gru_gates(gates, bias, wide[:, state.shape[1] :], 2, buffer[1])
    assert torch.allclose(buffer[1], gru_gates_reference(gates, bias, state, 2), atol=1e-6)
    assert buffer[[0, 2]].isnan().all()


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_compiles_for_every_chip(capability, dtype, compile_for):
    pointers = dict.fromkeys(("gates", "bias", "state"), f"*{dtype}")
    strides = dict.fromkeys(("state_stride", "out_stride", "width"), "i32")
    signature = pointers | {"out": f"*{dtype}"} | strides
    compile_for(module._forward, capability, signature, {"COLUMNS": 256}, num_warps=2)
    numbers = dict.fromkeys(("count", "size", "width"), "i32")
    pointers |= dict.fromkeys(("grad", "more", "by_gates", "by_state"), f"*{dtype}")
    compile_for(module._backward, capability, pointers | numbers, {"BLOCK": module.BLOCK}, num_warps=4)
