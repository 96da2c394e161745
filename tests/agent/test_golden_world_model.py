"""Encoder, recurrent model, decoder and KL against the reference's arrays."""

import pytest
import torch
from torch.nn import functional

from genreward_fast.agent import Draws, NetworkSize, RecordedSampler
from genreward_fast.agent.convs import max_pool
from genreward_fast.agent.distributions import mixed_probs, one_hot
from genreward_fast.agent.encoder import Encoder
from genreward_fast.agent.losses import image_loss
from genreward_fast.agent.model import Model
from genreward_fast.agent.nets import initialize
from genreward_fast.agent.rssm import State
from genreward_fast.kernels.latent_kl import latent_kl
from genreward_fast.kernels.latent_sample import latent_sample_backward


@pytest.fixture
def model(golden):
    model = Model(golden.config(), golden.action_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))  # what a file does not load must not be used
    return model


def sampler(posterior=None, prior=None):
    def index(onehot):
        return onehot.argmax(-1) if onehot is not None else torch.empty(0)

    return RecordedSampler(Draws(posterior=index(posterior), prior=index(prior), action=torch.empty(0)))


def gradients(model, part, output, extra=()):
    """Gradients of `output` by all parameters of model.<part> that take part, and by `extra` tensors."""
    named = {f"{part}.{name}": p for name, p in getattr(model, part).named_parameters()}
    found = torch.autograd.grad(output, [*named.values(), *extra], allow_unused=True)
    return dict(zip(named, found)), found[len(named) :]


def test_core_and_prior(golden, model):
    arrays = golden("rssm_core")
    arrays.load(model)
    rssm = model.rssm
    state = State(arrays["core/in/deter"], arrays["core/in/stoch"])
    action = arrays["core/in/action"]
    assert (action.abs() > 1).any()
    hooked = {}
    layers = {
        "dynin0": rssm.deter_in.linear,
        "dynin0norm": rssm.deter_in.norm,
        "dynin1": rssm.stoch_in.linear,
        "dynin1norm": rssm.stoch_in.norm,
        "dynin2": rssm.action_in.linear,
        "dynin2norm": rssm.action_in.norm,
        "dynhid0norm": rssm.hidden_norm,
        "dyngru": rssm.gates,
    }
    for name, layer in layers.items():
        layer.register_forward_hook(lambda _, inputs, output, name=name: hooked.__setitem__(name, output))
    rssm.hidden_norm.register_forward_hook(lambda _, inputs, output: hooked.__setitem__("dynhid0", inputs[0]))
    deter = rssm.core(state, action)
    logit = rssm.prior(arrays["core/out/deter"])
    golden.check([(name, arrays[f"core/mid/{name}"], value) for name, value in hooked.items()])
    golden.check(
        [
            ("deter", arrays["core/out/deter"], deter),
            ("logit", arrays["prior/out/logit"], logit),
            ("logprob", arrays["prior/out/logprob_unimix"], mixed_probs(logit, 0.01).log()),
        ]
    )


def test_one_observed_step(golden, model):
    arrays = golden("rssm_core")
    arrays.load(model)
    state = State(arrays["core/in/deter"], arrays["core/in/stoch"])
    stoch = arrays["step/sampled/stoch"]
    observed = model.rssm.observe(
        state,
        arrays["step/in/tokens"].unsqueeze(1),
        arrays["core/in/action"].unsqueeze(1),
        arrays["step/in/reset"].unsqueeze(1),
        sampler(posterior=stoch.unsqueeze(1)),
    )
    logit = observed.logit[:, 0]
    golden.check(
        [
            ("deter", arrays["step/out/deter"], observed.state.deter[:, 0]),
            ("logit", arrays["step/out/logit"], logit),
            ("logprob", arrays["step/out/logprob_unimix"], mixed_probs(logit, 0.01).log()),
            ("stoch", stoch, observed.state.stoch[:, 0]),
        ]
    )


def test_sequence_and_its_gradients(golden, model):
    arrays = golden("rssm_core")
    arrays.load(model)
    inputs = {
        name: arrays[f"seq/in/{name}"].clone().requires_grad_()
        for name in ("carry_deter", "carry_stoch", "tokens", "action")
    }
    observed = model.rssm.observe(
        State(inputs["carry_deter"], inputs["carry_stoch"]),
        inputs["tokens"],
        inputs["action"],
        arrays["seq/in/reset"],
        sampler(posterior=arrays["seq/sampled/stoch"]),
    )
    prior = model.rssm.prior(observed.state.deter)
    golden.check(
        [
            ("deter", arrays["seq/out/deter"], observed.state.deter),
            ("posterior", arrays["seq/out/post_logit"], observed.logit),
            ("prior", arrays["seq/out/prior_logit"], prior),
        ]
    )
    scalar = (
        (arrays["seq/in/w_deter"] * observed.state.deter).sum()
        + (arrays["seq/in/w_stoch"] * observed.state.stoch).sum()
        + (arrays["seq/in/w_logit"] * (observed.logit + 0.5 * prior)).sum()
    )
    golden.check([("scalar", arrays["seq/out/scalar"], scalar)])
    by_parameter, by_input = gradients(model, "rssm", scalar, inputs.values())
    golden.check([(name, arrays[f"seq/grad/{name}"], value) for name, value in zip(inputs, by_input)])
    expected = {name: value for name, value in arrays.parameters("seq/grad/param/").items() if name.startswith("rssm.")}
    assert expected.keys() == by_parameter.keys()
    golden.check([(name, value, by_parameter[name]) for name, value in expected.items()])


def test_imagination(golden, model):
    arrays = golden("rssm_core")
    arrays.load(model)
    actions = arrays["imag/in/action"]
    imagined = model.rssm.imagine(
        State(arrays["core/in/deter"], arrays["core/in/stoch"]),
        lambda state, step: actions[:, step],
        actions.shape[1],
        sampler(prior=arrays["imag/sampled/stoch"]),
    )
    golden.check(
        [
            ("deter", arrays["imag/out/deter"], imagined.state.deter),
            ("logit", arrays["imag/out/logit"], imagined.logit),
        ]
    )
    assert torch.equal(imagined.action, actions)


def test_kl(golden):
    arrays = golden("kl")
    post = arrays["in/post_logit"].clone().requires_grad_()
    prior = arrays["in/prior_logit"].clone().requires_grad_()
    unimix, free_nats = float(arrays["cfg/unimix"]), float(arrays["cfg/free_nats"])
    dyn, rep, *entropies = latent_kl(post, prior, unimix, free_nats)
    entropies = [entropy.mean() for entropy in entropies]
    total = float(arrays["cfg/scale_dyn"]) * dyn.mean() + float(arrays["cfg/scale_rep"]) * rep.mean()
    raw, *_ = latent_kl(post, prior, unimix, 0.0)

    def grad(output, by):
        return torch.autograd.grad(output, by, retain_graph=True)[0]

    golden.check(
        [
            ("post_logprob", arrays["mid/post_logprob"], mixed_probs(post, unimix).log()),
            ("prior_logprob", arrays["mid/prior_logprob"], mixed_probs(prior, unimix).log()),
            ("kl_raw", arrays["mid/kl_raw"], raw),
            ("dyn", arrays["out/dyn"], dyn),
            ("rep", arrays["out/rep"], rep),
            ("dyn_ent", arrays["out/dyn_ent"], entropies[0]),
            ("rep_ent", arrays["out/rep_ent"], entropies[1]),
            ("dyn by prior", arrays["grad/dyn_wrt_prior"], grad(dyn.sum(), prior)),
            ("rep by post", arrays["grad/rep_wrt_post"], grad(rep.sum(), post)),
            ("total by post", arrays["grad/total_wrt_post"], grad(total, post)),
            ("total by prior", arrays["grad/total_wrt_prior"], grad(total, prior)),
        ]
    )


def test_encoder(golden, model):
    arrays = golden("encoder")
    arrays.load(model)
    tokens = model.encoder(arrays["in/image"])
    golden.check([("tokens", arrays["out/tokens"], tokens)])
    # Layer by layer, which the fast forms do without.
    image = arrays["in/image"]
    x = image.reshape(-1, *image.shape[-3:])[:1].permute(0, 3, 1, 2) / 255 - 0.5
    for i, (conv, norm) in enumerate(zip(model.encoder.convs, model.encoder.norms)):
        normed = norm(max_pool(conv(x)))
        golden.check([(f"norm {i}", arrays[f"mid/cnn{i}norm_first"], normed.permute(0, 2, 3, 1))])
        x = functional.silu(normed)
    found, _ = gradients(model, "encoder", (arrays["in/w_tokens"] * tokens).sum())
    expected = arrays.parameters("grad/param/")
    assert expected.keys() == found.keys()
    golden.check([(name, value, found[name]) for name, value in expected.items()])


def test_decoder(golden, model):
    arrays = golden("decoder")
    arrays.load(model)
    decoder = model.decoder
    hooked = {}

    def keep(name, layer, images=True):
        def hook(_, inputs, output):
            hooked[name] = output[:1].permute(0, 2, 3, 1) if images else output[:1]

        layer.register_forward_hook(hook)

    keep("sp0", decoder.from_deter, images=False)
    keep("sp1", decoder.from_stoch.linear, images=False)
    keep("sp1norm", decoder.from_stoch.norm, images=False)
    keep("sp2", decoder.stoch_to_space, images=False)
    keep("spnorm", decoder.space_norm)
    for i, norm in enumerate(decoder.norms):
        keep(f"conv{2 - i}norm", norm)
    keep("imgout", decoder.image)
    deter = arrays["in/deter"].clone().requires_grad_()
    stoch = arrays["in/stoch"].clone().requires_grad_()
    pixels = decoder(deter, stoch)
    for name, value in hooked.items():  # of them the kernels leave but few
        expected = arrays[f"mid/{name}_first"]
        golden.check([(name, expected, value.reshape(expected.shape))])
    loss = decoder.loss(deter, stoch, arrays["in/target_image"])
    golden.check(
        [
            ("recon", arrays["out/recon"], pixels),
            ("loss", arrays["out/loss"], loss),
            ("loss of pixels", arrays["out/loss"], image_loss(pixels, arrays["in/target_image"])),
        ]
    )
    found, by_input = gradients(model, "decoder", loss.mean(), (deter, stoch))
    golden.check([("deter", arrays["grad/deter"], by_input[0]), ("stoch", arrays["grad/stoch"], by_input[1])])
    expected = arrays.parameters("grad/param/")
    assert expected.keys() == found.keys()
    golden.check([(name, value, found[name]) for name, value in expected.items()])


@pytest.mark.parametrize("depth", [5, 8])
def test_encoder_is_its_plain_form(golden, depth):
    """The golden arrays' is too narrow for some kernels."""
    sizes = NetworkSize(deter=64, hidden=8, classes=4, depth=depth, units=8, stoch=4)
    encoder = Encoder(sizes, torch.float32)
    generator = torch.Generator().manual_seed(3)
    initialize(encoder, generator)
    image = torch.randint(0, 256, (2, 2, 64, 64, 3), generator=generator, dtype=torch.uint8)[:, 1:]
    tokens, plain = encoder(image), encoder._plainly(image).flatten(1).unsqueeze(1)
    weight = torch.randn(plain.shape, generator=generator)
    parameters = dict(encoder.named_parameters())
    found, expected = (torch.autograd.grad((x * weight).sum(), list(parameters.values())) for x in (tokens, plain))
    golden.check([("tokens", plain.detach(), tokens), *zip(parameters, expected, found)], 1e-5)


@pytest.mark.slow
def test_through_the_kernels(run_interpreted):
    """The recurrent model of the arrays is too narrow for the fused scan, which test_fused_scan.py compares with what
    these arrays prove."""
    run_interpreted(__file__, "not through_the_kernels", 600)


def test_straight_through(golden):
    arrays = golden("straight_through")
    logit, unimix = arrays["in/logit"], float(arrays["cfg/unimix"])
    probs = mixed_probs(logit, unimix)
    sample = one_hot(arrays["in/index"], logit.shape[-1], torch.float32).requires_grad_()
    linear = (arrays["in/w1"] * sample).sum()
    nonlinear = torch.tanh(torch.einsum("bi,bij->bj", sample.flatten(1), arrays["in/w2"])).sum()

    def by_logit(output):
        found, zero = torch.empty_like(logit), torch.zeros_like(logit)
        by_sample = torch.autograd.grad(output, sample)[0]
        latent_sample_backward(by_sample, zero, zero, logit, unimix, found)
        return found

    golden.check(
        [
            ("probs", arrays["mid/probs_unimix"], probs),
            ("sample", arrays["mid/sample"], sample),
            ("linear", arrays["out/scalar_linear"], linear),
            ("nonlinear", arrays["out/scalar_nonlinear"], nonlinear),
            ("grad linear", arrays["grad/logit_linear"], by_logit(linear)),
            ("grad nonlinear", arrays["grad/logit_nonlinear"], by_logit(nonlinear)),
            ("entropy", arrays["out/entropy"], -(probs * probs.log()).sum(-1)),
            ("logp", arrays["out/logp_of_sample"], (probs.log() * sample).sum(-1)),
        ]
    )
