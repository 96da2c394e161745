"""Heads, two-hot distributions, returns and the actor's and critic's losses against the reference's arrays."""

import pytest
import torch

from genreward_fast.agent.distributions import Normal, TwoHot, symexp_bins
from genreward_fast.agent.losses import critic_loss
from genreward_fast.agent.model import Model
from genreward_fast.agent.returns import ReturnRange, lambda_return
from genreward_fast.kernels.lambda_return import imagined_return
from genreward_fast.kernels.policy_loss import policy_loss


def test_twohot(golden):
    arrays = golden("twohot")
    bins = symexp_bins(len(arrays["out/bins"]))
    golden.check([("bins", arrays["out/bins"], bins)], limit=1e-6)
    assert torch.equal(bins, -bins.flip(0))
    target = arrays["in/target"]
    for kind in ("peak", "wide", "edge", "zero"):
        name = f"in/logits_{kind}"
        logits = arrays[name].clone() if kind != "zero" else torch.zeros(*target.shape, len(bins))
        dist = TwoHot(logits.requires_grad_(), bins)
        loss = dist.loss(target)
        golden.check([(kind, arrays[f"out/pred_{kind}"], dist.pred()), (kind, arrays[f"out/loss_{kind}"], loss)])
        if kind != "zero":
            found = torch.autograd.grad(loss.sum(), logits)[0]
            golden.check([(kind, arrays[f"grad/loss_wrt_logits_{kind}"], found)])
    assert torch.equal(dist.pred(), torch.zeros_like(target))
    assert torch.equal(arrays["out/pred_zero"], torch.zeros_like(target))


def test_lambda_return(golden):
    arrays = golden("returns")
    lam = float(arrays["cfg/lam"])
    discount = 1 - 1 / float(arrays["cfg/horizon"])
    reward, boot, con = (arrays[f"lambda/in/{name}"] for name in ("rew", "boot", "con"))
    replay = lambda_return(reward, arrays["lambda/in/term"], arrays["lambda/in/last"], boot, discount, lam)
    value = arrays["lambda/in/val"]
    imagined = lambda_return(reward, 1 - con, torch.zeros_like(con), value, 1.0, lam)
    golden.check(
        [
            ("replay", arrays["lambda/out/replay_style"], replay),
            ("imagined", arrays["lambda/out/imag_style"], imagined),
        ]
    )


def test_return_range(golden):
    arrays = golden("returns")
    options = {name: float(arrays[f"cfg/retnorm_{name}"]) for name in ("rate", "limit", "perclo", "perchi")}
    spread = ReturnRange(options["rate"], options["limit"], options["perclo"], options["perchi"])
    first = torch.stack([spread.low, spread.scale()])
    golden.check([("initial", arrays["retnorm/out/initial_offset_scale"], first)])
    for i, update in enumerate(arrays["retnorm/in/update"]):
        if update:
            spread.update(arrays["retnorm/in/x"][i])
        golden.check(
            [
                ("low", arrays["retnorm/out/lo"][i], spread.low),
                ("high", arrays["retnorm/out/hi"][i], spread.high),
                ("scale", arrays["retnorm/out/scale"][i], spread.scale()),
            ]
        )


def imagined_losses(arrays, spread, rew, grads=False, slow_target=False, discount=1.0, entropy=None, update=True):
    """What the reference's `imag_loss` returns, put together as `objective.compute` does."""
    mean, stddev, logits = (
        arrays[f"imag/in/{name}"].clone().requires_grad_() for name in ("mean", "stddev", "value_logits")
    )
    bins = symexp_bins(logits.shape[-1])
    value = TwoHot(logits, bins)
    slow = TwoHot(arrays["imag/in/slowvalue_logits"], bins).pred()
    con = arrays["imag/in/con"]
    target = slow if slow_target else value.pred().detach()
    lam = float(arrays["cfg/imag_lam"])
    chances, ret, weight = (x.t() for x in imagined_return(rew.t(), con.logit().t(), target.t(), discount, lam))
    assert torch.allclose(chances, con, atol=1e-6)
    if update:
        spread.update(ret)
    policy = Normal(mean, stddev)
    entropy = float(arrays["cfg/imag_actent"]) if entropy is None else entropy
    low, high = 0.1, 1.0
    raw = torch.cat([mean.atanh(), ((stddev - low) / (high - low)).logit() - 2.0], -1)
    action = arrays["imag/in/action"].transpose(0, 1)[:-1]
    constants = action, ret.t(), target.t(), weight.t(), spread.scale()
    loss, _, _, advantage = policy_loss(raw.transpose(0, 1), *constants, low, high, entropy)
    actor, advantage = loss.t(), advantage.t()
    value_loss = critic_loss(value[:, :-1], ret, slow[:, :-1], float(arrays["cfg/imag_slowreg"]), weight[:, :-1])
    results = {"policy": actor, "value": value_loss, "ret": ret}
    results |= {"retnorm_lo": spread.low.clone(), "retnorm_hi": spread.high.clone()}
    mids = {
        "weight": weight,
        "logp": policy.log_prob(arrays["imag/in/action"]),
        "entropy": policy.entropy(),
        "value_pred": value.pred(),
        "slowvalue_pred": slow,
    }
    if grads:
        total = actor.mean() + value_loss.mean()
        found = torch.autograd.grad(total, (mean, stddev, logits))
        results |= {f"grad/{name}": g for name, g in zip(("mean", "stddev", "value_logits"), found)}
        results |= {
            "metric/adv": advantage.mean(),
            "metric/adv_std": advantage.std(unbiased=False),
            "metric/adv_mag": advantage.abs().mean(),
        }
    return results, mids


def test_imagined_actor_and_critic_losses(golden):
    arrays = golden("actor_critic")
    spread = ReturnRange(0.01, 1.0, 5.0, 95.0)
    scales = []
    for call in range(3):
        results, mids = imagined_losses(arrays, spread, arrays["imag/in/rew"][call], grads=True)
        golden.check([(name, arrays[f"imag/call{call}/{name}"], value) for name, value in results.items()])
        golden.check([(name, arrays[f"imag/mid/{name}"], value) for name, value in mids.items()])
        scales.append(float(spread.scale()))
    assert scales[0] == 1 < scales[2]  # both sides of the limit
    variants = {
        "slowtar": {"slow_target": True},
        "nocontdisc": {"discount": 1 - 1 / float(arrays["cfg/horizon"])},
        "noupdate": {"update": False},
        "bigactent": {"entropy": 0.3},
    }
    low, high = spread.low.clone(), spread.high.clone()
    for variant, options in variants.items():
        spread.low.copy_(low)
        spread.high.copy_(high)
        results, _ = imagined_losses(arrays, spread, arrays["imag/in/rew"][2], **options)
        golden.check([(name, arrays[f"imag/{variant}/{name}"], value) for name, value in results.items()])


def test_replay_value_loss(golden):
    arrays = golden("actor_critic")
    last, term, rew, boot = (arrays[f"repl/in/{name}"] for name in ("last", "term", "rew", "boot"))
    logits = arrays["repl/in/value_logits"].clone().requires_grad_()
    bins = symexp_bins(logits.shape[-1])
    slow = TwoHot(arrays["repl/in/slowvalue_logits"], bins).pred()
    discount = 1 - 1 / float(arrays["cfg/horizon"])
    ret = lambda_return(rew, term, last, boot, discount, float(arrays["cfg/imag_lam"]))
    loss = critic_loss(TwoHot(logits, bins)[:, :-1], ret, slow[:, :-1], 1.0, (~last[:, :-1]).float())
    found = torch.autograd.grad(loss.mean(), logits)[0]
    golden.check(
        [
            ("ret", arrays["repl/out/ret"], ret),
            ("repval", arrays["repl/out/repval"], loss),
            ("grad", arrays["repl/grad/value_logits"], found),
        ]
    )


@pytest.mark.parametrize("head", ["rew", "con", "pol", "val"])
def test_head(golden, head):
    arrays = golden("heads")
    model = Model(golden.config(), golden.action_size)
    arrays.load(model)
    features = arrays["in/feat"].clone().requires_grad_()
    if head in ("rew", "val"):
        module = model.reward if head == "rew" else model.critic
        dist = module(features)
        loss = dist.loss(arrays["in/scalar_target"])
        results = {"logits": dist.logits, "pred": dist.pred(), "loss": loss}
    elif head == "con":
        module = model.continuation
        dist = module(features)
        loss = dist.loss(arrays["in/con_target"])
        results = {"logit": dist.logit, "prob1": dist.prob(), "loss": loss}
    else:
        module = model.actor
        dist = module(features)
        logp, entropy = dist.log_prob(arrays["in/action"]), dist.entropy()
        loss = logp * torch.arange(1.0, logp.shape[1] + 1) + entropy
        results = {"mean": dist.mean, "stddev": dist.stddev, "logp": logp, "entropy": entropy}
    golden.check([(name, arrays[f"out/{head}/{name}"], value) for name, value in results.items()])
    named = dict(module.named_parameters())
    found = torch.autograd.grad(loss.sum(), [features, *named.values()])
    golden.check([("features", arrays[f"grad/feat_{head}"], found[0])])
    expected = [arrays.parameters("grad/param/")[name] for name in names_of(model, module)]
    golden.check([(name, e, f) for name, e, f in zip(named, expected, found[1:])])


def names_of(model, module):
    """Full names of the module's parameters, in their order."""
    full = {id(p): name for name, p in model.named_parameters()}
    return [full[id(p)] for p in module.parameters()]


@pytest.mark.slow
def test_through_the_kernels(run_interpreted):
    run_interpreted(__file__, "not through_the_kernels", 300)
