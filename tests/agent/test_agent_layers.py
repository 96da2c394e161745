"""Layers: shapes and exactness of what differs from the plain torch operation, and initial weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genreward_fast.agent import AgentConfig, NetworkSize
from genreward_fast.agent.convs import Conv, UpConv, max_pool
from genreward_fast.agent.decoder import Decoder
from genreward_fast.agent.distributions import TwoHot, one_hot, symexp_bins
from genreward_fast.agent.encoder import Encoder
from genreward_fast.agent.heads import outputs
from genreward_fast.agent.losses import image_loss
from genreward_fast.agent.model import Model
from genreward_fast.agent.nets import BlockLinear, Linear, RMSNorm, initialize
from genreward_fast.agent.rssm import RSSM, State
from genreward_fast.agent.sampling import RandomSampler
from genreward_fast.kernels.phase_image_loss import phase_image_loss_reference, phase_pixels


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (1, 1)])
def test_upconv_is_doubling_and_convolution(size):
    layer = UpConv(6, 3).double()
    initialize(layer, torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.bias.normal_()
    x = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    expected = Conv.forward(layer, F.interpolate(x, scale_factor=2, mode="nearest"))
    found = layer(x)
    assert torch.allclose(found, expected, atol=1e-12)
    weight = torch.randn_like(found)
    leaves = [x, *layer.parameters()]
    for a, b in zip(
        torch.autograd.grad((found * weight).sum(), leaves), torch.autograd.grad((expected * weight).sum(), leaves)
    ):
        assert torch.allclose(a, b, atol=1e-11)


@pytest.mark.parametrize(("inputs", "outputs", "size"), [(3, 8, (6, 10)), (1, 5, (3, 2)), (4, 1, (1, 6))])
def test_conv_in_pairs_is_the_convolution(inputs, outputs, size):
    layer = Conv(inputs, outputs).double()
    initialize(layer, torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.bias.normal_()
    x = torch.randn(2, inputs, *size, dtype=torch.float64, requires_grad=True)
    expected, found = layer(x), layer.in_pairs(x)
    assert torch.allclose(found, expected, atol=1e-12)
    leaves, weight = [x, *layer.parameters()], torch.randn_like(expected)
    for a, b in zip(torch.autograd.grad(found, leaves, weight), torch.autograd.grad(expected, leaves, weight)):
        assert torch.allclose(a, b, atol=1e-11)


@pytest.mark.parametrize("depth", [1, 6, 17])
def test_blocks_are_the_plain_image_networks(depth):
    """The references of the kernels, put together as on CUDA, beside the plain layers."""
    sizes = NetworkSize(deter=16, hidden=8, classes=4, depth=depth, units=8, stoch=4, blocks=4)
    encoder, decoder = Encoder(sizes, torch.float32), Decoder(sizes, torch.float32)
    generator = torch.Generator().manual_seed(2)
    for network in (encoder, decoder):
        initialize(network, generator)
        for name, parameter in network.named_parameters():
            if name.endswith(("bias", "scale")):
                nn.init.normal_(parameter, 0.5, 0.2, generator=generator)
    image = torch.randint(0, 4, (2, 64, 64, 3), generator=generator, dtype=torch.uint8) * 85  # with ties
    weight = torch.randn(2, encoder.size, generator=generator)
    start = torch.randn(2, 4, 4, 4 * depth, generator=generator)
    pairs = []
    for tokens in (encoder._plainly(image), encoder._in_blocks(image)):
        loss = (tokens.reshape(weight.shape) * weight).sum()
        pairs.append([tokens, *torch.autograd.grad(loss, list(encoder.parameters()))])
    parameters = [p for layer in (*decoder.convs, *decoder.norms, decoder.image) for p in layer.parameters()]
    for blocks in (False, True):
        if blocks:
            x = decoder._in_blocks(start)
            pixels = phase_pixels(x, decoder.image.bias, 4)
            loss = phase_image_loss_reference(x, decoder.image.bias, image, 4)
        else:
            pixels = decoder._plainly(start)
            loss = image_loss(pixels, image)
        pairs.append([pixels, loss, *torch.autograd.grad(loss.sum(), parameters)])
    for plain, found in (pairs[:2], pairs[2:]):
        for a, b in zip(plain, found):
            assert a.shape == b.shape
            assert (a - b).norm() < 1e-5 * a.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("depth", [4, 16, 24])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_kernels_are_the_plain_image_networks(depth, dtype, limit, monkeypatch):
    """The encoder's gradients by a hundredth at least: where two pixels nearly tie, the maximum's gradient goes to
    either, and libraries differ by some 1e-5 in a float32 convolution."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    sizes = NetworkSize(deter=512, hidden=8, classes=4, depth=depth, units=64, stoch=4)
    generator = torch.Generator().manual_seed(4)
    networks = [Encoder(sizes, dtype), Decoder(sizes, dtype)]
    for network in networks:
        initialize(network, generator)
        network.cuda()
    encoder, decoder = networks
    image = torch.randint(0, 256, (3, 5, 64, 64, 3), generator=generator, dtype=torch.uint8).cuda()[:, 1:]
    deter, stoch = torch.randn(3, 4, 512, generator=generator), torch.rand(3, 4, 4, 4, generator=generator)
    deter, stoch = deter.cuda().requires_grad_(), stoch.cuda()
    weight = torch.randn(3, 4, encoder.size, generator=generator).cuda()
    found = [encoder(image), decoder.loss(deter, stoch, image)]
    assert torch.equal(found[0], encoder(image))
    start = decoder._start(deter, stoch)
    expected = [encoder._plainly(image).reshape(weight.shape), image_loss(decoder._plainly(start), image.flatten(0, 1))]
    for i, (a, b) in enumerate(zip(found, expected)):
        assert (a.flatten() - b.flatten()).norm() < limit * b.norm()
        leaves = [deter, *decoder.parameters()] if i else list(encoder.parameters())
        scalars = [x.sum() if i else (x * weight).sum() for x in (a, b)]
        for x, y in zip(*(torch.autograd.grad(scalar, leaves, retain_graph=True) for scalar in scalars)):
            assert (x - y).norm() < (2 * limit if i else max(2 * limit, 1e-2)) * y.norm()


def test_max_pool_splits_the_gradient_among_ties():
    x = torch.tensor([[1.0, 1.0, 5.0, 2.0], [1.0, 1.0, 5.0, 5.0], [0.0, 3.0, 7.0, 7.0], [3.0, 0.0, 6.0, 5.0]])
    x = x.view(1, 1, 4, 4).requires_grad_()
    y = max_pool(x)
    assert y.flatten().tolist() == [1, 5, 3, 7]
    grad = torch.autograd.grad((y * torch.tensor([[4.0, 3.0], [2.0, 1.0]])).sum(), x)[0].view(4, 4)
    expected = [[1, 1, 1, 0], [1, 1, 1, 1], [0, 1, 0.5, 0.5], [1, 0, 0, 0]]
    assert torch.allclose(grad, torch.tensor(expected, dtype=torch.float32))


def test_max_pool_agrees_with_amax():
    x = torch.randint(0, 3, (3, 5, 8, 6)).float().to(memory_format=torch.channels_last).requires_grad_()
    expected = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5))
    found = max_pool(x)
    weight = torch.randn_like(found)
    assert torch.equal(found, expected)
    a, b = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (found, expected))
    assert torch.allclose(a, b)


def test_norm_takes_float32_statistics_of_bfloat16():
    norm = RMSNorm(64)
    initialize(norm, torch.Generator())
    x = (torch.randn(4, 64) * 3).bfloat16()
    y = norm(x)
    assert y.dtype == torch.bfloat16
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-4).sqrt()
    assert torch.equal(y, exact.float().bfloat16())


@pytest.mark.parametrize(
    ("layer", "fan"),
    [(Linear(300, 400), 300), (BlockLinear(800, 1600, 8), 800), (Conv(32, 64), 800), (Linear(300, 400, 0.01), 3e6)],
)
def test_initial_weights_have_the_published_scale(layer, fan):
    initialize(layer, torch.Generator().manual_seed(1))
    assert not layer.bias.any()
    # A normal cut at two deviations keeps a deviation of 0.8796, and 1.1368 undoes that.
    weight = layer.weight.detach()
    assert float(weight.std()) == pytest.approx(1 / math.sqrt(fan), rel=0.02)
    assert float(weight.abs().max()) <= 2 * 1.1368 / math.sqrt(fan) + 1e-6


def test_twohot_of_zeros_is_exactly_zero():
    bins = symexp_bins(255)
    assert torch.equal(TwoHot(torch.zeros(3, 255), bins).pred(), torch.zeros(3))
    assert torch.equal(TwoHot(torch.full((3, 255), -1.7), bins).pred(), torch.zeros(3))


def test_twohot_code_has_its_target_as_mean():
    bins = symexp_bins(255)
    logits = torch.zeros(7, 255, requires_grad=True)
    target = torch.tensor([-1e4, -3.0, -1e-3, 0.0, 0.7, 55.5, 2e6])
    grad = torch.autograd.grad(TwoHot(logits, bins).loss(target).sum(), logits)[0]
    code = (logits.softmax(-1) - grad).double()
    assert torch.allclose((code * bins).sum(-1), target.double(), rtol=1e-4, atol=1e-4 * float(bins[128]))
    assert ((code > 1e-6).sum(-1) <= 2).all()


def test_twohot_of_nan_is_nan():
    loss = TwoHot(torch.zeros(3, 255), symexp_bins(255)).loss(torch.tensor([1.0, float("nan"), float("inf")]))
    assert loss.isnan().tolist() == [False, True, False]


def test_sampler_follows_the_probabilities():
    sampler = RandomSampler(torch.device("cpu"), 0)
    probs = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.97, 0.01, 0.01, 0.01], [0.0, 0.0, 1.0, 0.0]])
    index, onehot = sampler.latent(probs.log().expand(20000, 3, 4), 0.0, "prior", 0)
    assert torch.equal(onehot, one_hot(index, 4, torch.float32))
    frequency = onehot.mean(0)
    assert torch.allclose(frequency, probs, atol=0.015)
    assert (index[:, 2] == 2).all()
    action = sampler.action(torch.full((20000, 2), 3.0), torch.full((20000, 2), 0.5), 0)
    assert torch.allclose(action.mean(0), torch.tensor(3.0), atol=0.02)
    assert torch.allclose(action.std(0), torch.tensor(0.5), atol=0.02)


def test_a_long_action_is_read_as_its_cut():
    config = AgentConfig(size="tiny", dtype="float32")
    model = Model(config, 3)
    model.initialize(torch.Generator().manual_seed(0))
    state = State(torch.randn(5, 512), torch.zeros(5, 32, 4))
    action = torch.randn(5, 3) * 3
    assert torch.equal(model.rssm.core(state, action), model.rssm.core(state, action.clamp(-1, 1)))


def test_heads_side_by_side_are_the_heads():
    config = AgentConfig(size="tiny", dtype="float32")
    model = Model(config, 3)
    model.initialize(torch.Generator().manual_seed(0))
    heads = [model.reward, model.continuation, model.critic, model.actor]
    features = torch.randn(4, 3, config.feature_size, requires_grad=True)
    joint = outputs(heads, features)
    alone = [head.output(head.mlp(features)) for head in heads]
    parameters = [p for head in heads for p in head.parameters()]
    weights = [torch.randn_like(x) for x in alone]
    grads = []
    for found in (joint, alone):
        total = sum((x * w).sum() for x, w in zip(found, weights))
        grads.append(torch.autograd.grad(total, [features, *parameters]))
    for a, b in zip([*joint, *grads[0]], [*alone, *grads[1]]):
        assert a.shape == b.shape
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_one_observed_row_without_gradients_is_the_scan():
    sizes = NetworkSize(deter=32, hidden=16, classes=4, depth=2, units=8, stoch=4, blocks=4)
    config = AgentConfig(size="small", network=sizes, dtype="float64")
    generator = torch.Generator().manual_seed(0)
    rssm = RSSM(config, 3, 24).double()
    initialize(rssm, generator)
    deter, tokens, action = (
        torch.randn(5, *shape, generator=generator, dtype=torch.float64) for shape in ((32,), (1, 24), (1, 3))
    )
    index = torch.randint(0, 4, (5, 4), generator=generator)
    reset = torch.tensor([[False], [True], [False], [False], [True]])
    inputs = State(deter, one_hot(index, 4, torch.float64)), tokens, 2 * action, reset
    plain = rssm.observe(*inputs, RandomSampler(torch.device("cpu"), 1))
    with torch.no_grad():
        found = rssm.observe(*inputs, RandomSampler(torch.device("cpu"), 1))
    assert torch.equal(found.index, plain.index)
    for a, b in ((found.state.deter, plain.state.deter), (found.state.stoch, plain.state.stoch)):
        assert a.shape == b.shape
        assert torch.allclose(a, b, atol=1e-12)
    assert found.logit.shape == plain.logit.shape
    assert torch.allclose(found.logit, plain.logit, atol=1e-12)
