from __future__ import annotations

import pytest
import torch

from genreward_fast.kernels import loss_total as module
from genreward_fast.kernels.loss_total import loss_total, loss_total_reference

SCALES = (1.0, 0.1, 0.3)
# of three losses and two other tensors
SHAPES = [
    [(1,), (1,), (2,), (1, 1), (3,)],
    [(4, 5), (130,), (2, 3), (65, 3), (7,)],
    [(16, 33), (16, 32), (9000,), (4096,), (4097,)],
]


def make(shapes, generator, device="cpu"):
    return [(torch.randn(shape, generator=generator) * 3 + 1).to(device) for shape in shapes]


def check(function, shapes, device, generator):
    vectors = make(shapes, generator, device)
    total, statistics = function(vectors[:3], SCALES, vectors[3:])
    exact = [x.cpu().double() for x in vectors]
    wanted = sum(scale * x.mean() for scale, x in zip(SCALES, exact))
    assert total.shape == ()
    assert torch.allclose(total.cpu().double(), wanted, rtol=1e-5, atol=1e-5)
    for i, x in enumerate(exact):
        spread = x.flatten().var(correction=1).sqrt() if x.numel() > 1 else torch.tensor(torch.nan).double()
        expected = torch.stack([x.mean(), x.abs().mean(), spread])
        assert torch.allclose(statistics[:, i].cpu().double(), expected, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("shapes", SHAPES)
def test_reference(shapes, fresh_generator):
    check(loss_total_reference, shapes, "cpu", fresh_generator)


@pytest.mark.parametrize("shapes", SHAPES)
def test_on_triton(shapes, triton_device, poisoned, fresh_generator):
    check(loss_total, shapes, triton_device, fresh_generator)


def test_on_triton_takes_views_and_no_others(triton_device, fresh_generator):
    whole, *rest = make([(6, 9), (4,), (5,)], fresh_generator, triton_device)
    losses = [whole[:, :-1], whole.t(), *rest]
    total, statistics = loss_total(losses, [1.0] * 4)
    expected, wanted = loss_total_reference(losses, [1.0] * 4)
    # Numbers of both signs: their sums may be small beside them.
    assert torch.allclose(total, expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(statistics, wanted, rtol=1e-5, atol=1e-5)


def test_on_triton_nan_shows(triton_device, fresh_generator):
    vectors = make(SHAPES[1], fresh_generator, triton_device)
    vectors[1][100] = float("nan")
    total, statistics = loss_total(vectors[:3], SCALES, vectors[3:])
    assert total.isnan()
    assert statistics.isnan().any(0).tolist() == [False, True, False, False, False]


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
def test_compiles_for_every_chip(capability, compile_for):
    signature = {"vectors": ("*fp32",) * 20, "counts": ("i32",) * 20, "scales": ("fp32",) * 8}
    signature |= dict.fromkeys(("statistics", "shares"), "*fp32")
    constants = {"COUNT": 20, "LOSSES": 8, "SIZE": module.BLOCK}
    compile_for(module._statistics, capability, signature, constants, num_warps=8)


@pytest.mark.gpu
def test_large(fresh_generator):
    shapes = [(16, 1024), (15, 1024), (16, 64), (1_000_003,), (1,)]
    check(loss_total, shapes, "cuda", fresh_generator)
