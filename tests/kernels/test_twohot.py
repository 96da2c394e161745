from __future__ import annotations

import pytest
import torch

from genreward_fast.agent.distributions import symexp_bins
from genreward_fast.kernels import twohot as module
from genreward_fast.kernels.twohot import twohot_loss, twohot_loss_reference, twohot_mean, twohot_mean_reference

# (leading shape of the logits, bins)
SHAPES = [((7,), 3), ((5,), 255), ((3, 11), 255), ((4, 2), 33), ((9,), 101)]
DTYPES = [torch.float32, torch.bfloat16]
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
VARIANTS = ["one", "two", "scaled", "weighted", "shorter", "last shorter"]


def make(shape, count, dtype, generator, device="cpu"):
    """Logits, bins, two targets (small, large, beyond the last bin, on a bin), a weight and a gradient."""
    bins = symexp_bins(count)
    logits = (3 * torch.randn(*shape, count, generator=generator)).to(dtype)
    targets = torch.randn(2, *shape, generator=generator) * 10 ** (torch.rand(2, *shape, generator=generator) * 12 - 3)
    targets[0].view(-1)[0] = bins[count // 2 + 1]
    targets[1].view(-1)[-1] = -1e30
    weight, grad = torch.rand(shape, generator=generator), torch.randn(shape, generator=generator)
    return [x.to(device) for x in (logits, bins, *targets, weight, grad)]


def options(variant, second, weight):
    if variant == "one":
        return {}
    if variant == "scaled":
        return {"second": second, "second_scale": 0.3}
    return {"second": second} if variant == "two" else {"second": second, "weight": weight}


def exact(logits, bins, target, grad, second=None, second_scale=1.0, weight=None):
    """The loss and its gradient in float64, from codes written out."""
    leaf = logits.detach().cpu().double().requires_grad_()
    bins = bins.cpu().double()
    used = leaf[tuple(slice(size) for size in target.shape)]

    def entropy(wanted):
        wanted = wanted.cpu().double().clamp(bins[0], bins[-1])
        above = torch.searchsorted(bins, wanted.contiguous(), right=True).clamp(1, len(bins) - 1)
        share = (wanted - bins[above - 1]) / (bins[above] - bins[above - 1])
        code = torch.nn.functional.one_hot(above, len(bins)) * share.unsqueeze(-1)
        code = code + torch.nn.functional.one_hot(above - 1, len(bins)) * (1 - share).unsqueeze(-1)
        return -(code * used.log_softmax(-1)).sum(-1)

    loss = entropy(target)
    if second is not None:
        loss = loss + second_scale * entropy(second)
    if weight is not None:
        loss = loss * weight.cpu().double()
    return loss.detach(), torch.autograd.grad(loss, leaf, grad.cpu().double())[0]


@pytest.mark.parametrize("function", [twohot_mean_reference, twohot_mean])
def test_on_triton_mirrored_logits_mean_zero(function, triton_device, fresh_generator):
    """To the last bit: the outer bins are so far out that any rounding would be a value."""
    half = torch.randn(64, 127, generator=fresh_generator)
    logits = torch.cat([half, torch.randn(64, 1, generator=fresh_generator), half.flip(1)], 1).to(triton_device)
    mean = function(logits, symexp_bins(255).to(triton_device))
    assert torch.equal(mean, torch.zeros_like(mean))


def check_loss(function, shape, count, dtype, variant, device, generator, relative_rms):
    logits, bins, target, second, weight, grad = make(shape, count, dtype, generator, device)
    if variant == "shorter":
        target, second, weight, grad = (x[:-1] for x in (target, second, weight, grad))
    if variant == "last shorter":
        target, second, weight, grad = (x[..., :-1] for x in (target, second, weight, grad))
    if target.numel() == 0:
        return
    kwargs = options(variant, second, weight)
    leaf = logits.clone().requires_grad_()
    loss = function(leaf, bins, target, **kwargs)
    assert loss.dtype == torch.float32
    assert loss.shape == target.shape
    found = torch.autograd.grad(loss, leaf, grad)[0]
    assert found.dtype == dtype
    expected = exact(logits, bins, target, grad, **kwargs)
    # A loss may be as small as the rounding of the logarithms that it is a difference of.
    torch.testing.assert_close(loss.detach().cpu().double(), expected[0], rtol=1e-5, atol=2e-6)
    # A gradient is a difference of two probabilities.
    assert relative_rms(found, expected[1], of=grad / count**0.5) < LIMITS[dtype]
    found[tuple(slice(size) for size in target.shape)] = 0
    assert not found.any()


@pytest.mark.parametrize("count", [3, 33, 255])
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_triton_logits_beyond_the_bins_play_no_part(count, dtype, triton_device, poisoned, fresh_generator):
    shape, width = (6, 5), -(-count // 8) * 8
    logits, bins, target, second, weight, grad = make(shape, count, dtype, fresh_generator, triton_device)
    more = torch.full((*shape, width - count), float("nan"), dtype=dtype, device=triton_device)
    wide = torch.cat([logits, more], -1).requires_grad_()
    leaf = logits.requires_grad_()
    assert torch.equal(twohot_mean(wide, bins), twohot_mean(leaf, bins))
    assert torch.equal(twohot_mean_reference(wide, bins), twohot_mean_reference(leaf, bins))
    for function in (twohot_loss, twohot_loss_reference):
        losses = [function(x, bins, target[:-1], second[:-1], 0.3, weight[:-1]) for x in (wide, leaf)]
        # Sums over rows of other lengths may be taken in another order.
        assert torch.allclose(*losses, rtol=1e-6, atol=1e-6)
        found, expected = (torch.autograd.grad(y, x, grad[:-1])[0] for y, x in zip(losses, (wide, leaf)))
        assert torch.allclose(found[..., :count], expected, rtol=1e-5, atol=1e-7 if dtype == torch.float32 else 1e-3)
        assert not found[..., count:].any()


def check_mean(function, shape, count, dtype, device, generator, relative_rms):
    logits, bins, *_ = make(shape, count, dtype, generator, device)
    expected = (logits.cpu().double().softmax(-1) * bins.cpu().double()).sum(-1)
    found = function(logits, bins)
    assert found.dtype == torch.float32
    assert relative_rms(found.cpu(), expected) < 1e-5
    for level in (0.0, -1.7, 88.0):
        equal = torch.full_like(logits, level)
        assert torch.equal(function(equal, bins), torch.zeros(shape, device=device))


@pytest.mark.parametrize(("shape", "count"), SHAPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_references(shape, count, variant, fresh_generator, relative_rms):
    check_loss(twohot_loss_reference, shape, count, torch.float32, variant, "cpu", fresh_generator, relative_rms)
    check_mean(twohot_mean_reference, shape, count, torch.float32, "cpu", fresh_generator, relative_rms)


@pytest.mark.parametrize(("shape", "count"), SHAPES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_triton_loss(shape, count, variant, dtype, triton_device, poisoned, fresh_generator, relative_rms):
    check_loss(twohot_loss, shape, count, dtype, variant, triton_device, fresh_generator, relative_rms)


@pytest.mark.parametrize(("shape", "count"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_triton_mean(shape, count, dtype, triton_device, poisoned, fresh_generator, relative_rms):
    check_mean(twohot_mean, shape, count, dtype, triton_device, fresh_generator, relative_rms)


def test_on_triton_gradient_of_a_mean(triton_device, fresh_generator, relative_rms):
    logits, bins, target, *_ = make((6, 3), 255, torch.float32, fresh_generator, triton_device)
    found, expected = [], []
    for function, grads in ((twohot_loss, found), (twohot_loss_reference, expected)):
        leaf = logits.clone().requires_grad_()
        grads += torch.autograd.grad(function(leaf, bins, target).mean(), leaf)
    assert relative_rms(found[0].cpu(), expected[0].cpu()) < 1e-5


def test_on_triton_what_is_no_number_stays_in_its_row(triton_device):
    bins = symexp_bins(255).to(triton_device)
    logits = torch.zeros(5, 255, device=triton_device)
    logits[3, 7] = float("nan")
    leaf = logits.requires_grad_()
    nan, inf = float("nan"), float("inf")
    target = torch.tensor([1.0, nan, inf, 0.0, -inf], device=triton_device)
    for function in (twohot_loss, twohot_loss_reference):
        loss = function(leaf, bins, target)
        assert loss.isnan().tolist() == [False, True, False, True, False]
        grad = torch.autograd.grad(loss.sum(), leaf)[0].isnan()
        assert grad.all(1).tolist() == grad.any(1).tolist() == [False, True, False, True, False]
        assert torch.allclose(loss[2], torch.tensor(255.0, device=triton_device).log())
    assert twohot_mean(logits, bins).isnan().tolist() == [False, False, False, True, False]


def test_without_rows():
    bins = symexp_bins(255)
    assert twohot_loss(torch.zeros(0, 255), bins, torch.zeros(0)).shape == (0,)
    assert twohot_mean(torch.zeros(0, 255), bins).shape == (0,)


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_compiles_for_every_chip(capability, dtype, compile_for):
    pointers = {"logits": f"*{dtype}", "bins": "*fp32"}
    numbers = {"rows": "i32", "width": "i32", "count": "i32"}
    periods = {"period": "i32", "used": "i32"}
    compile_for(module._mean, capability, pointers | {"mean": "*fp32"} | numbers, {"ROWS": 8, "SIZE": 256}, num_warps=4)
    pointers |= dict.fromkeys(("target", "second", "weight"), "*fp32") | {"second_scale": "fp32"}
    constants = {"ROWS": 8, "SIZE": 256, "TWO": True, "WEIGHTED": True}
    compile_for(module._loss, capability, pointers | {"loss": "*fp32"} | numbers | periods, constants, num_warps=4)
    more = {"grad": "*fp32", "step": "i32", "by_logits": f"*{dtype}"} | periods
    compile_for(module._backward, capability, pointers | more | numbers, constants, num_warps=4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_large(dtype, fresh_generator, relative_rms):
    check_loss(twohot_loss, (16, 1024), 255, dtype, "shorter", "cuda", fresh_generator, relative_rms)
    check_mean(twohot_mean, (16, 1024), 255, dtype, "cuda", fresh_generator, relative_rms)
