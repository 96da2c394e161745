"""Every reference given float64 computes in float64 alone, so that it can be the exact result of others."""

import pytest
import torch

from genreward_fast.kernels import (
    activated_linear,
    actor_tail,
    column_sums,
    continuation_loss,
    fb_score,
    frames,
    gated_silu,
    gru_gates,
    image_blocks,
    image_level,
    lambda_return,
    laprop,
    latent_cosine,
    latent_kl,
    latent_sample,
    layer_norm,
    loss_total,
    phase_image_loss,
    phase_norm_silu,
    phase_weights,
    policy_action,
    policy_loss,
    prior_sample,
    return_range,
    rmsnorm_silu,
    rope,
    rssm_step,
    space_norm_silu,
    twohot,
)
from genreward_fast.kernels.triton_support import softmax

EPS = 1e-4


def draw(*shape, low=None):
    """Normal numbers; with `low` uniform ones from there to 1 more."""
    made = torch.randn(shape, dtype=torch.float64) if low is None else torch.rand(shape, dtype=torch.float64)
    return made if low is None else low + made


def flags(*shape):
    return draw(*shape) < -0.5


def pictures(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def bins():
    half = torch.logspace(-1, 8, 5, dtype=torch.float64)
    return torch.cat([-half.flip(0), torch.zeros(1, dtype=torch.float64), half])


def picture_of(bytes_between):
    how = frames.FrameFormat((3, 3), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bicubic", True, bytes_between)
    return frames.frames_reference(pictures(2, 5, 7, 3), how, torch.float64)


def folded_score():
    shapes = [(2, 6, 5), (2, 6), (2, 6), (2, 6), (2, 6, 6), (2, 6), (2, 6), (2,)]
    return fb_score.FoldedScore(*(draw(*shape) for shape in shapes), eps=EPS)


def one_update():
    """LaProp over two tensors, with a follower of the second."""
    segments = laprop.Segments.make([5, 70], "cpu")
    gradient, parameter, mu, nu = (torch.zeros(segments.total, dtype=torch.float64) for _ in range(4))
    for buffer in (gradient, parameter):
        for view in segments.views(buffer):
            view.copy_(draw(*view.shape))
    start = segments.starts[1]
    follower = laprop.Follower(start, draw(segments.total - start), None, 0.02)
    rate, correction = torch.tensor(-0.1, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64)
    norm = laprop.laprop_reference(
        gradient, parameter, mu, nu, segments, rate, correction, laprop.Rates(), follower=follower
    )
    return norm, parameter, mu, nu, follower.values


def one_action():
    action, out = draw(3, 2), draw(3, 4)
    head, embed = (draw(4, 6), draw(4)), (draw(4, 2), draw(4), draw(4))
    policy_action.policy_action_reference(draw(3, 6), draw(6), head, draw(3, 2), action, (0.1, 1.0), embed, EPS, out)
    return action, out


def one_tail():
    action, out = draw(3, 2), draw(3, 12)
    layers, head, embed = (draw(2, 4, 4), draw(2, 4)), (draw(4, 4), draw(4)), (draw(4, 2), draw(4), draw(4))
    weights = actor_tail.TailWeights(draw(5, 4), layers, head, embed, (0.1, 1.0), EPS)
    actor_tail.actor_tail_reference(weights, draw(3, 8), draw(3, 8), draw(3, 2), action, out)
    return action, out


def one_prior():
    layers, output, logits, out = (draw(1, 4, 4), draw(1, 4)), (draw(6, 4), draw(6)), draw(3, 2, 3), draw(3, 2, 3)
    weights = prior_sample.PriorWeights(draw(2, 4), layers, output, 0.01, EPS)
    prior_sample.prior_sample_reference(weights, draw(3, 4), draw(3, 2, low=0.0), None, logits, out)
    return logits, out


def one_step():
    sizes = {"deter": 16, "hidden": 16, "flat": 16, "blocks": 2}
    deter, hidden, flat, blocks = sizes.values()
    piece = deter // blocks
    weights = rssm_step.StepWeights(
        deter_in=draw(hidden, deter),
        deter_bias=draw(hidden),
        deter_scale=draw(hidden),
        stoch_in=draw(hidden, flat),
        stoch_bias=draw(hidden),
        stoch_scale=draw(hidden),
        hidden=draw(blocks, piece + 3 * hidden, piece),
        hidden_scale=draw(deter),
        gates=draw(blocks, piece, 3 * piece),
        gates_bias=draw(3 * deter),
        from_deter=draw(hidden, deter),
        posterior_scale=draw(hidden),
        logit=draw(flat, hidden),
        logit_bias=draw(flat),
    )
    rows = draw(3, deter), draw(3, flat), flags(3), draw(3, deter), draw(3, hidden)
    values = rssm_step.observe_step_reference(weights, 0.01, *rows, None, torch.randint(0, 4, (3, 4)))
    return values.deter, values.logits, values.stoch


def gates():
    return draw(3, 24), draw(24), draw(3, 8), 2


CASES = {
    "activated_linear": lambda: activated_linear.activated_linear_reference(
        draw(3, 4), draw(6, 4), draw(6), gated=True
    ),
    "activated_linear_gelu": lambda: activated_linear.activated_linear_reference(
        draw(3, 4), draw(6, 4), draw(6), gated=False
    ),
    "actor_tail": one_tail,
    "column_sums": lambda: column_sums.column_sums_reference(draw(5, 3), torch.float64),
    "continuation_loss": lambda: continuation_loss.continuation_loss_reference(draw(5), flags(5), 0.997),
    "fb_score": lambda: fb_score.fb_score_reference(draw(3, 4), draw(3, 1), folded_score()),
    "frames": lambda: picture_of(bytes_between=False),
    "frames_of_bytes": lambda: picture_of(bytes_between=True),
    "gated_silu": lambda: gated_silu.gated_silu_reference(draw(3, 8)),
    "gru_gates": lambda: gru_gates.gru_gates_reference(*gates()),
    "gru_gates_backward": lambda: gru_gates.gru_gates_backward_reference(draw(3, 8), *gates()),
    "image_blocks": lambda: image_blocks.image_blocks_reference(pictures(2, 4, 4, 3), torch.float64, 16),
    "image_level": lambda: image_level.image_level_reference(
        pictures(2, 4, 4, 3), draw(5, 3, 5, 5), draw(5), draw(5), EPS, torch.float64
    ),
    "lambda_return": lambda: lambda_return.lambda_return_reference(
        draw(3, 5), flags(3, 5), flags(3, 5), draw(3, 5), 0.997, 0.95
    ),
    "imagined_return": lambda: lambda_return.imagined_return_reference(draw(5, 3), draw(5, 3), draw(5, 3), 0.997, 0.95),
    "laprop": one_update,
    "latent_cosine": lambda: latent_cosine.latent_cosine_reference(draw(3, 4, 2), draw(4, 2)),
    "latent_kl": lambda: latent_kl.latent_kl_reference(draw(3, 4, 5), draw(3, 4, 5), 0.01, 0.1),
    "latent_sample": lambda: latent_sample.latent_sample_reference(draw(3, 4, 5), draw(3, 4, low=0.0), 0.01),
    "latent_sample_backward": lambda: latent_sample.latent_sample_backward_reference(
        draw(3, 5), draw(3, 5), draw(3, 5), 0.01
    ),
    "layer_norm": lambda: layer_norm.layer_norm_reference(draw(3, 8), draw(8), draw(8), EPS, draw(8)),
    "loss_total": lambda: loss_total.loss_total_reference([draw(3), draw(4, 2)], [1.0, 0.3], [draw(5)]),
    "phase_image_loss": lambda: phase_image_loss.phase_image_loss_reference(
        draw(2, 3, 3, 12), draw(3), pictures(2, 6, 6, 3), 2
    ),
    "phase_norm_silu": lambda: phase_norm_silu.phase_norm_silu_reference(
        draw(2, 4, 4, 20), draw(5), draw(5), EPS, "pool_blocks"
    ),
    "phase_weights": lambda: phase_weights.phase_weights_reference(draw(3, 2, 5, 5), torch.float64, 2, 1, 16, 8),
    "policy_action": one_action,
    "policy_loss": lambda: policy_loss.policy_loss_reference(
        draw(5, 3, 4), draw(4, 3, 2), draw(4, 3), draw(5, 3), draw(5, 3), draw(low=1.0), 0.1, 1.0, 3e-4
    ),
    "prior_sample": one_prior,
    "return_range": lambda: return_range.move_range_reference(draw(40), draw(), draw(), (0.05, 0.95), 0.01, 1.0),
    "rmsnorm_silu": lambda: rmsnorm_silu.rmsnorm_silu_reference(draw(3, 8), draw(2, 4), EPS),
    "rmsnorm_silu_backward": lambda: rmsnorm_silu.rmsnorm_silu_backward_reference(
        draw(3, 8), draw(3, 8), draw(2, 4), EPS
    ),
    "rope": lambda: rope.rope_reference(draw(2, 5, 3, 2, 8), draw(4, 4), draw(4, 4)),
    "observe_step": one_step,
    "space_norm_silu": lambda: space_norm_silu.space_norm_silu_reference(
        draw(2, 3, 8), draw(16), draw(3, 16), draw(16), draw(4), EPS
    ),
    "twohot_mean": lambda: twohot.twohot_mean_reference(draw(3, 12), bins()),
    "twohot_loss": lambda: twohot.twohot_loss_reference(
        draw(5, 3, 12), bins(), draw(4, 3), draw(4, 3), 0.5, draw(4, 3, low=0.0)
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_float64_stays_float64(name, made_floats):
    with made_floats() as floats:
        CASES[name]()
    assert floats.made.keys() == {torch.float64}


def test_a_cast_would_show(made_floats):
    with made_floats() as floats:
        draw(3).float().double()
    assert floats.made.keys() == {torch.float32, torch.float64}


def test_the_gradients_written_by_hand():
    x, scale = draw(3, 8).requires_grad_(), draw(2, 4).requires_grad_()
    grad = draw(3, 8)
    expected = torch.autograd.grad(rmsnorm_silu.rmsnorm_silu_reference(x, scale, EPS), [x, scale], grad)
    by_x, sums = rmsnorm_silu.rmsnorm_silu_backward_reference(grad, x.detach(), scale.detach(), EPS)
    torch.testing.assert_close((by_x, sums[0], sums[1].flatten()), (*expected, expected[0].sum(0)))

    values, bias, state, blocks = gates()
    values, state = values.requires_grad_(), state.requires_grad_()
    expected = torch.autograd.grad(gru_gates.gru_gates_reference(values, bias, state, blocks), [values, state], grad)
    found = gru_gates.gru_gates_backward_reference(grad, values.detach(), bias, state.detach(), blocks)
    torch.testing.assert_close(found, expected)

    logits, by_logits = draw(3, 8).requires_grad_(), draw(3, 8)
    probs = 0.99 * logits.softmax(-1) + 0.01 / 8
    (expected,) = torch.autograd.grad(probs, [logits], grad)
    found = latent_sample.latent_sample_backward_reference(grad, by_logits, logits.detach(), 0.01)
    torch.testing.assert_close(found, expected + by_logits)


@pytest.mark.parametrize("shape", [(4,), (3, 1), (7, 5, 4), (2, 3, 0, 4), (2, 3, 20)])
def test_a_softmax_over_few_values_is_the_softmax(shape):
    x = draw(*shape).requires_grad_()
    found, expected = softmax(x), x.softmax(-1)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected)
    grad = draw(*shape)
    torch.testing.assert_close(torch.autograd.grad(found, [x], grad), torch.autograd.grad(expected, [x], grad))
