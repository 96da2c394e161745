"""The losses through second moments against those over all pairs of rows, and their gradients against autograd's."""

import pytest
import torch

from genreward_fast.rewards.fb_losses import orthonormality_loss, successor_loss
from genreward_fast.rewards.fb_moments import representation_loss

ORTHO = 1.7


def make_outputs(heads, rows, size, dtype):
    """Networks' outputs as the losses take them; the first row is always a transition."""
    forward, target_forward = torch.randn(2, heads, rows, size, dtype=dtype)
    backward, target_backward = torch.randn(2, rows, size, dtype=dtype)
    discount = 0.98 * (torch.rand(rows) < 0.8).to(dtype)
    weight = (torch.rand(rows) < 0.7).to(dtype)
    weight[0] = 1
    return forward.requires_grad_(), backward.requires_grad_(), target_forward, target_backward, discount, weight


def expected_loss(forward, backward, target_forward, target_backward, discount, weight):
    loss, metrics = successor_loss(forward, backward, target_forward, target_backward, discount, "mean", weight)
    ortho, ortho_metrics = orthonormality_loss(backward)
    return loss + ORTHO * ortho, metrics | ortho_metrics


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("shape", [(2, 33, 7), (1, 9, 3), (3, 65, 16)], ids=str)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
def test_loss_and_gradients(shape, dtype, limit):
    outputs = make_outputs(*shape, dtype)
    doubles = [value.detach().double() for value in outputs]
    inputs = [value.requires_grad_() for value in doubles[:2]]
    loss, metrics = representation_loss(*outputs, ORTHO)
    expected, expected_metrics = expected_loss(*doubles)
    # What the loss is a difference of: near 0 its own size says nothing.
    scale = 1 + sum(value.detach().abs() for value in expected_metrics.values())
    assert ((loss - expected).abs() / scale).item() <= limit
    assert metrics.keys() == expected_metrics.keys()
    for name, value in metrics.items():
        assert value.ndim == 0
        assert not value.requires_grad
        assert ((value - expected_metrics[name]).abs() / scale).item() <= limit, name
    gradients = torch.autograd.grad(3 * loss, outputs[:2])
    for found, wanted in zip(gradients, torch.autograd.grad(3 * expected, inputs)):
        assert relative(found.double(), wanted) <= limit


def test_rows_that_are_no_transition_count_for_nothing():
    """Without any, what is left is the orthonormality of B."""
    *outputs, weight = make_outputs(2, 9, 5, torch.float64)
    loss, _ = representation_loss(*outputs, torch.zeros_like(weight), ORTHO)
    ortho = ORTHO * orthonormality_loss(outputs[1])[0]
    torch.testing.assert_close(loss, ortho)
    forward, backward = torch.autograd.grad(loss, outputs[:2])
    assert not forward.any()
    torch.testing.assert_close(backward, torch.autograd.grad(ortho, outputs[1])[0])
