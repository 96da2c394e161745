"""The optimiser and three whole training steps against the reference's arrays."""

import pytest
import torch

from genreward_fast.agent import Agent, RecordedSampler, objective
from genreward_fast.agent.optimizer import LaProp

STEPS = 5


@pytest.mark.parametrize("run", ["default", "fast"])
def test_optimizer(golden, run):
    arrays = golden("optimizer")
    options = {name: float(arrays[f"{run}/cfg/{name}"]) for name in ("lr", "beta1", "beta2", "eps", "agc")}
    names = arrays.names("in/param/")
    parameters = {name: arrays[f"in/param/{name}"].clone() for name in names}
    optimizer = LaProp(parameters.items(), warmup=int(arrays[f"{run}/cfg/warmup"]), **options)
    for step in range(STEPS):
        gradients = [arrays[f"in/grad{step}/{name}"] for name in names]
        before = {name: p.double() for name, p in parameters.items()}
        clipped, norm = optimizer.clip(gradients)
        assert torch.allclose(norm, torch.cat([g.flatten() for g in gradients]).norm())
        rate = options["lr"] * min(step, optimizer.warmup) / optimizer.warmup
        optimizer.step(gradients)
        scale = rate / (1 - options["beta1"] ** (step + 1))
        updates = {name: -scale * mu for name, mu in zip(names, optimizer.mu)}
        golden.check([(n, arrays[f"{run}/step{step}/after_agc/{n}"], value) for n, value in zip(names, clipped)])
        golden.check([(n, arrays[f"{run}/step{step}/update/{n}"], updates[n]) for n in names])
        golden.check([(n, arrays[f"{run}/step{step}/param/{n}"], parameters[n]) for n in names])
        for name in names:
            moved = parameters[name].double() - before[name]
            rounding = 2e-7 * parameters[name].abs().max()
            assert torch.allclose(moved, updates[name].double(), rtol=1e-3, atol=float(rounding))
            if step == 0:
                assert torch.equal(parameters[name].double(), before[name])
    golden.check([(n, arrays[f"{run}/final/nu/{n}"], value) for n, value in zip(names, optimizer.nu)])
    golden.check([(n, arrays[f"{run}/final/mu/{n}"], value) for n, value in zip(names, optimizer.mu)])


def test_optimizer_keeps_denormals():
    # The square of 3e-18 times 1 - beta2 is no normal float32: flushed to 0, it would make the update 300 times larger.
    parameter = torch.ones(4)
    optimizer = LaProp([("p", parameter)], lr=0.01, warmup=0)
    optimizer.step([torch.full((4,), 3e-18)])
    assert optimizer.nu[0].min() > 0
    assert torch.allclose(parameter, torch.full((4,), 1 - 0.01 * 3e-18 / (3e-18 + 1e-20)))


@pytest.fixture(params=["float32", "float64"])
def agent(golden, request):
    arrays = golden("train_step")
    config = golden.config(
        dtype=request.param,
        lr=float(arrays["cfg/opt_lr"]),
        warmup=int(arrays["cfg/opt_warmup"]),
        agc=float(arrays["cfg/opt_agc"]),
        beta1=float(arrays["cfg/opt_beta1"]),
        beta2=float(arrays["cfg/opt_beta2"]),
        eps=float(arrays["cfg/opt_eps"]),
        slow_rate=float(arrays["cfg/slow_rate"]),
    )
    agent = Agent(config, golden.action_size, "cpu")
    arrays.load(agent.model)
    agent.model.return_range.low.copy_(arrays["in/retnorm_lo"])
    agent.model.return_range.high.copy_(arrays["in/retnorm_hi"])
    return agent


def test_three_training_steps(golden, agent, monkeypatch):
    arrays = golden("train_step")
    compute, results = objective.compute, []
    monkeypatch.setattr(objective, "compute", lambda *args: results.append(compute(*args)) or results[-1])
    for step in range(3):
        metrics, latents = agent.update(
            arrays.batch(f"step{step}/in/"), RecordedSampler(arrays.draws(f"step{step}/sampled/"))
        )
        found = results[-1]
        rows = found.losses["dyn"].shape
        names = {"reward": "rew"}
        losses = {
            f"loss_{names.get(name, name)}": loss.mean(1).view(rows) if name in ("policy", "value") else loss
            for name, loss in found.losses.items()
        }
        outputs = losses | {
            "tokens": found.tokens,
            "post_deter": found.observed.state.deter,
            "post_logit": found.observed.logit,
            "imag_deter": found.imagined.state.deter,
            "imag_prior_logit": found.imagined.logit,
            "imag_rew": found.imagined_reward,
            "imag_con": found.imagined_con,
            "imag_ret": found.imagined_return,
            "repl_ret": found.replay_return,
            "loss": metrics["loss/total"],
            "grad_norm": metrics["opt/grad_norm"],
            "retnorm/lo": metrics["return/low"],
            "retnorm/hi": metrics["return/high"],
            "replay_writeback/dyn/deter": latents.deter,
            "replay_writeback/dyn/stoch": torch.nn.functional.one_hot(
                latents.stoch.long(), agent.config.sizes.classes
            ).float(),
        }
        assert set(arrays.names(f"step{step}/out/")) == outputs.keys()
        golden.check([(name, arrays[f"step{step}/out/{name}"], value) for name, value in outputs.items()])
        if step:
            after = arrays.parameters(f"after_step{step}/param/")
            own = dict(agent.model.named_parameters())
            assert step == 1 or after.keys() == own.keys()
            golden.check([(name, value, own[name]) for name, value in after.items()])
    assert agent.updates == 3


def test_gradients_of_the_first_step(golden, agent):
    arrays = golden("train_step")
    sampler = RecordedSampler(arrays.draws("step0/sampled/"))
    with agent.model.recording() as gradients:
        objective.compute(agent.model, agent.config, arrays.batch("step0/in/"), sampler, gradients)
    found = {name: sum(parts) for (name, _), parts in zip(agent.model.trained(), gradients.total())}
    expected = arrays.parameters("step0/grad/")
    assert expected.keys() == found.keys()
    golden.check([(name, value, found[name]) for name, value in expected.items()])


@pytest.mark.slow
def test_through_the_kernels(run_interpreted):
    run_interpreted(__file__, "not through_the_kernels", 900)
