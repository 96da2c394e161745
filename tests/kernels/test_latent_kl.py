from __future__ import annotations

import pytest
import torch

from genreward_fast.kernels import latent_kl as module
from genreward_fast.kernels.latent_kl import latent_kl, latent_kl_reference

UNIMIX = 0.01
SHAPES = [(1, 1, 2), (5, 32, 4), (2, 3, 32, 16), (3, 8, 7), (2, 5, 24), (2, 32, 96), (1, 2, 256)]
DTYPES = [torch.float32, torch.bfloat16]
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def make(shape, dtype, generator, device="cpu"):
    """Logits of posterior and prior, alike in the first row, and the gradients by both losses."""
    posterior, prior = (2 * torch.randn(shape, generator=generator) for _ in range(2))
    prior[0] = posterior[0] + 0.01 * prior[0]
    grads = torch.randn(2, *shape[:-2], generator=generator)
    return posterior.to(dtype).to(device), prior.to(dtype).to(device), *grads.to(device)


def exact(posterior, prior, by_dyn, by_rep, free_nats):
    """All results and both gradients, in float64 by autograd."""
    post, pri = (x.detach().cpu().double().requires_grad_() for x in (posterior, prior))
    p, q = (x.softmax(-1) * (1 - UNIMIX) + UNIMIX / x.shape[-1] for x in (post, pri))
    dyn = (p.detach() * (p.detach().log() - q.log())).sum((-2, -1)).clamp(min=free_nats)
    rep = (p * (p.log() - q.detach().log())).sum((-2, -1)).clamp(min=free_nats)
    entropies = [-(x * x.log()).sum((-2, -1)).detach() for x in (q, p)]
    grads = torch.autograd.grad((dyn * by_dyn.cpu() + rep * by_rep.cpu()).sum(), (post, pri))
    return dyn.detach(), rep.detach(), *entropies, *grads


def check(function, shape, dtype, device, generator, relative_rms):
    posterior, prior, by_dyn, by_rep = make(shape, dtype, generator, device)
    divergence = exact(posterior, prior, by_dyn, by_rep, 0.0)[0]
    # Between the rows' divergences, so that some are free.
    free_nats = float(divergence.median()) + 1e-3 if divergence.numel() > 1 else 1e-3
    leaves = [posterior.clone().requires_grad_(), prior.clone().requires_grad_()]
    results = function(*leaves, UNIMIX, free_nats)
    grads = torch.autograd.grad(results[:2], leaves, (by_dyn, by_rep))
    assert not results[2].requires_grad
    assert not results[3].requires_grad
    expected = exact(posterior, prior, by_dyn, by_rep, free_nats)
    for i, (value, wanted) in enumerate(zip((*results, *grads), expected)):
        assert value.shape == wanted.shape
        assert value.dtype == (dtype if i > 3 else torch.float32)
        if wanted.any():
            assert relative_rms(value.detach().cpu(), wanted) < (LIMITS[dtype] if i > 3 else 1e-5), i
        else:
            assert not value.any()


@pytest.mark.parametrize("shape", SHAPES)
def test_reference(shape, fresh_generator, relative_rms):
    check(latent_kl_reference, shape, torch.float32, "cpu", fresh_generator, relative_rms)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_triton(shape, dtype, triton_device, poisoned, fresh_generator, relative_rms):
    check(latent_kl, shape, dtype, triton_device, fresh_generator, relative_rms)


def test_on_triton_gradient_of_means(triton_device, fresh_generator, relative_rms):
    posterior, prior, *_ = make((4, 3, 8, 6), torch.float32, fresh_generator, triton_device)
    grads = []
    for function in (latent_kl, latent_kl_reference):
        leaves = [posterior.clone().requires_grad_(), prior.clone().requires_grad_()]
        dyn, rep, *_ = function(*leaves, UNIMIX, 0.1)
        grads.append(torch.autograd.grad(dyn.mean() + 0.1 * rep.mean(), leaves))
    for found, expected in zip(*grads):
        assert relative_rms(found.cpu(), expected.cpu()) < 1e-5


def test_on_triton_nan_stays_in_its_row(triton_device, fresh_generator):
    posterior, prior, *_ = make((4, 3, 6), torch.float32, fresh_generator, triton_device)
    posterior[2, 1, 4] = float("nan")
    leaves = [posterior.requires_grad_(), prior.requires_grad_()]
    dyn, rep, *entropies = latent_kl(*leaves, UNIMIX, 1.0)
    for value in (dyn, rep, entropies[1]):
        assert value.isnan().tolist() == [False, False, True, False]
    by_posterior, _ = torch.autograd.grad((dyn + rep).sum(), leaves)
    assert by_posterior[2].isnan().any()
    assert not by_posterior[[0, 1, 3]].isnan().any()


def test_without_rows():
    empty = torch.zeros(0, 3, 4)
    assert [x.shape for x in latent_kl(empty, empty, UNIMIX, 1.0)] == [(0,)] * 4


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize(("dtype", "classes"), [("bf16", 16), ("bf16", 128), ("fp32", 16)])
def test_compiles_for_every_chip(capability, dtype, classes, compile_for):
    tile, warps = module._layout(32, classes)
    logits = {"posterior": f"*{dtype}", "prior": f"*{dtype}"}
    numbers = {"latents": "i32", "classes": "i32", "unimix": "fp32", "free_nats": "fp32"}
    results = dict.fromkeys(("dyn", "rep", "prior_entropy", "posterior_entropy"), "*fp32")
    compile_for(module._forward, capability, logits | results | numbers, tile, num_warps=warps)
    grads = {"by_dyn": "*fp32", "dyn_step": "i32", "by_rep": "*fp32", "rep_step": "i32"}
    grads |= {"by_posterior": f"*{dtype}", "by_prior": f"*{dtype}"}
    compile_for(module._backward, capability, logits | grads | numbers, tile, num_warps=warps)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_large(dtype, fresh_generator, relative_rms):
    check(latent_kl, (16, 64, 32, 96), dtype, "cuda", fresh_generator, relative_rms)
