from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from genreward_fast.kernels import continuation_loss as module
from genreward_fast.kernels.continuation_loss import continuation_loss, continuation_loss_reference

SCALE = 0.997
SHAPES = [(1,), (3, 5), (257,), (16, 64)]
DTYPES = [torch.float32, torch.bfloat16]
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def make(shape, dtype, generator, device="cpu"):
    logit = 4 * torch.randn(shape, generator=generator)
    terminal = torch.rand(shape, generator=generator) < 0.3
    return logit.to(dtype).to(device), terminal.to(device), torch.randn(shape, generator=generator).to(device)


def check(function, shape, dtype, device, generator, relative_rms):
    logit, terminal, grad = make(shape, dtype, generator, device)
    leaf, exact = logit.clone().requires_grad_(), logit.cpu().double().requires_grad_()
    loss = function(leaf, terminal, SCALE)
    assert loss.dtype == torch.float32
    target = SCALE * (~terminal).cpu().double()
    expected = functional.binary_cross_entropy_with_logits(exact, target, reduction="none")
    # A loss is a difference of numbers as large as the logit.
    assert relative_rms(loss.detach(), expected.detach(), of=logit) < 1e-5
    found, wanted = torch.autograd.grad(loss, leaf, grad)[0], torch.autograd.grad(expected, exact, grad.cpu())[0]
    assert found.dtype == dtype
    # A gradient is a difference of two probabilities.
    assert relative_rms(found, wanted, of=grad) < LIMITS[dtype]


@pytest.mark.parametrize("shape", SHAPES)
def test_reference(shape, fresh_generator, relative_rms):
    check(continuation_loss_reference, shape, torch.float32, "cpu", fresh_generator, relative_rms)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_triton(shape, dtype, triton_device, poisoned, fresh_generator, relative_rms):
    check(continuation_loss, shape, dtype, triton_device, fresh_generator, relative_rms)


def test_on_triton_far_out_and_no_number(triton_device):
    logit = torch.tensor([-200.0, 200.0, float("nan")], device=triton_device, requires_grad=True)
    terminal = torch.tensor([False, False, True], device=triton_device)
    loss = continuation_loss(logit, terminal, 1.0)
    assert loss.tolist()[:2] == [200, 0]
    assert loss[2].isnan()
    found = torch.autograd.grad(loss.mean(), logit)[0]
    assert torch.allclose(found[:2].cpu(), torch.tensor([-1 / 3, 0.0]))
    assert found[2].isnan()


def test_on_triton_takes_slices(triton_device, fresh_generator):
    logit, terminal, _ = make((6, 7), torch.float32, fresh_generator, triton_device)
    found = continuation_loss(logit[:, 1:], terminal[:, 1:], SCALE)
    assert torch.allclose(found, continuation_loss_reference(logit[:, 1:], terminal[:, 1:], SCALE), atol=1e-6)


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_compiles_for_every_chip(capability, dtype, compile_for):
    signature = {"logit": f"*{dtype}", "terminal": "*u8", "count": "i32", "scale": "fp32"}
    constants = {"SIZE": module.BLOCK}
    compile_for(module._forward, capability, signature | {"loss": "*fp32"}, constants, num_warps=2)
    more = {"grad": "*fp32", "step": "i32", "by_logit": f"*{dtype}"}
    compile_for(module._backward, capability, signature | more, constants, num_warps=2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_large(dtype, fresh_generator, relative_rms):
    check(continuation_loss, (333, 1021), dtype, "cuda", fresh_generator, relative_rms)
